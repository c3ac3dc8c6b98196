"""What the run found, in sentences."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from markupsafe import Markup

from pipelines.report import words
from pipelines.report.data import Run, VariantRun
from pipelines.report.stats import Contrast

Tone = Literal["win", "tie", "plain", "warning", "alarm"]


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A finding; ``text`` is safe markup, ``title`` a heading for a banner."""

    tone: Tone
    text: Markup
    title: str = ""


_EQUAL = 0.02
"""Tables whose bytes differ by no more than this share are of one size."""


def verdicts(run: Run, pairs: dict[tuple[str, str], Contrast]) -> list[Sentence]:
    """The headline, then the best learned variant against the full table and against the best baseline."""
    if not run.ranking:
        return [Sentence("plain", Markup("No variant has a value of {} on test.").format(run.selection))]
    found = [_headline(run, pairs), _against_full(run, pairs), _against_baseline(run, pairs)]
    sentences: list[Sentence] = []
    for sentence in found:
        if sentence is not None and sentence not in sentences:
            sentences.append(sentence)
    return sentences


def banners(run: Run, pairs: dict[tuple[str, str], Contrast]) -> list[Sentence]:
    """An alarm when a baseline is above every learned variant, a warning when above some or level with the best."""
    learned = [v for v in run.ranking if not v.is_baseline]
    baseline = next((v for v in run.ranking if v.is_baseline), None)
    if baseline is None or not learned:
        return []
    if _score(run, baseline) > _score(run, learned[0]):
        return [_alarm(run, baseline, learned[0], pairs)]
    found = []
    beaten = [v.name for v in learned if _score(run, v) < _score(run, baseline)]
    if beaten:
        text = Markup("<b>{}</b>, a simple baseline ({} {}), beats {} of {} learned variants: {}.")
        value = words.metric(_score(run, baseline))
        found.append(text.format(baseline.name, run.selection, value, len(beaten), len(learned), ", ".join(beaten)))
    contrast = pairs.get((learned[0].name, baseline.name)) or pairs.get((baseline.name, learned[0].name))
    if contrast is not None and not contrast.is_significant:
        text = Markup("The best learned variant, <b>{}</b>, is not significantly better than <b>{}</b>{}.")
        found.append(text.format(learned[0].name, baseline.name, _evidence(contrast)))
    return [Sentence("warning", text, "Caution") for text in found]


def _alarm(run: Run, baseline: VariantRun, best: VariantRun, pairs: dict[tuple[str, str], Contrast]) -> Sentence:
    contrast = pairs.get((baseline.name, best.name))
    unsure = contrast is not None and not contrast.is_significant
    text = Markup("<b>{}</b>, a simple baseline, {} every learned variant: {} {} against {} for {}{}. {}")
    return Sentence(
        "alarm",
        text.format(
            baseline.name,
            "is ahead of" if unsure else "beats",
            run.selection,
            words.metric(_score(run, baseline)),
            words.metric(_score(run, best)),
            best.name,
            _evidence(contrast),
            "The difference may be chance." if unsure else "Nothing that was learned here earns its cost.",
        ),
        "A simple baseline wins",
    )


def leak_banner(manifest: dict[str, Any]) -> list[Sentence]:
    """An alarm when a check of the leak audit in ``dataset.json`` failed."""
    failed = [str(check.get("name", "")) for check in manifest.get("leak_audit", []) if check.get("passed") is False]
    if not failed:
        return []
    text = Markup("No number below can be trusted: {} failed. See <a href='#data'>the audit</a>.")
    return [Sentence("alarm", text.format(", ".join(failed)), "The leak audit failed")]


def main_pairs(run: Run, limit: int = 4) -> list[tuple[VariantRun, VariantRun]]:
    """Pairs that the verdict and the explorer look at, the more telling first; each is (better, worse)."""
    ranking = run.ranking
    learned = [v for v in ranking if not v.is_baseline]
    candidates = [_headline_pair(run)]
    compressed = next((v for v in ranking if v.is_compressed), None)
    full = _full_of(run, compressed)
    if full is not None and compressed is not None:
        candidates.append(_ordered(run, full, compressed))
    baseline = next((v for v in ranking if v.is_baseline), None)
    if baseline is not None and learned:
        candidates.append(_ordered(run, learned[0], baseline))
    candidates.append((ranking[0], ranking[1]) if len(ranking) > 1 else None)
    unique = dict.fromkeys((a.name, b.name) for a, b in filter(None, candidates))
    return [(run.variant(a), run.variant(b)) for a, b in unique][:limit]


def _ordered(run: Run, a: VariantRun, b: VariantRun) -> tuple[VariantRun, VariantRun]:
    return (a, b) if run.ranking.index(a) < run.ranking.index(b) else (b, a)


def _score(run: Run, variant: VariantRun) -> float:
    return variant.metric(f"test/{run.selection}") or 0.0


def _headline_pair(run: Run) -> tuple[VariantRun, VariantRun] | None:
    """The best compressed variant and the best one of another family, if there is one of as many bytes.

    Else of any bytes, else of its own family and as many bytes, else the full table, else the best two variants.
    """
    compressed = [v for v in run.ranking if v.is_compressed]
    if len(compressed) > 1:
        best, size = compressed[0], compressed[0].mean("table_bytes")
        others = [v for v in compressed if v.family != best.family]
        equal, alike = (
            [v for v in ones if abs(v.mean("table_bytes") - size) <= _EQUAL * size] for ones in (others, compressed[1:])
        )
        full = _full_of(run, best)
        if full is not None and full.first.model == best.first.model and not (others or alike):
            return _ordered(run, full, best)
        return best, (equal or others or alike or compressed[1:])[0]
    learned = [v for v in run.ranking if not v.is_baseline]
    if len(run.ranking) < 2:
        return None
    if learned and learned[0] is not run.ranking[0]:
        return run.ranking[0], learned[0]
    return run.ranking[0], run.ranking[1]


def _headline(run: Run, pairs: dict[tuple[str, str], Contrast]) -> Sentence:
    pair = _headline_pair(run)
    if pair is None:
        only = run.ranking[0]
        text = Markup("Only <b>{}</b> was evaluated: {} {}. There is nothing to compare it with.")
        value = f"{words.metric(_score(run, only))} {words.interval(run.interval(only, run.selection))}".rstrip()
        return Sentence("plain", text.format(only.name, run.selection, value))
    return _comparison(run, pair[0], pair[1], pairs)


def _comparison(run: Run, a: VariantRun, b: VariantRun, pairs: dict[tuple[str, str], Contrast]) -> Sentence:
    contrast = pairs.get((a.name, b.name))
    if contrast is None:
        text = Markup("<b>{}</b> has {} {} and <b>{}</b> {}; without per-user values there is no test.")
        values = (words.metric(_score(run, a)), words.metric(_score(run, b)))
        return Sentence("plain", text.format(a.name, run.selection, values[0], b.name, values[1]))
    if not contrast.is_significant:
        text = Markup("No difference shown between <b>{}</b> and <b>{}</b>: {}.")
        return Sentence("tie", text.format(a.name, b.name, gain(contrast, run.selection)))
    text = Markup("<b>{}</b> beats <b>{}</b> by {}.")
    return Sentence("win", text.format(a.name, b.name, gain(contrast, run.selection)))


def gain(contrast: Contrast, metric: str) -> Markup:
    """``+103 % recall@20 [95, 111], p = .0004, 29,858 users``; absolute where a relative gain has no meaning."""
    if contrast.has_relative:
        text = f"{words.percent(contrast.relative, signed=True)} {metric} "
        text += words.percent_bounds(contrast.relative_low, contrast.relative_high)
    else:
        text = f"{words.difference(contrast.difference)} {metric} {words.interval((contrast.low, contrast.high))}"
    return Markup('<span class="nums">{}, {}, {:,} users</span>').format(
        text, words.p_value(contrast.p_holm), contrast.users
    )


def _evidence(contrast: Contrast | None) -> Markup:
    return (
        Markup("")
        if contrast is None
        else Markup(" ({}, {:,} users)").format(words.p_value(contrast.p_holm), contrast.users)
    )


def _full_of(run: Run, variant: VariantRun | None) -> VariantRun | None:
    """The largest full table of a variant's model, else of any model."""
    full = [v for v in run.ranking if v.is_full]
    same = [v for v in full if variant is not None and v.first.model == variant.first.model]
    return max(same or full, key=lambda v: v.mean("table_bytes"), default=None)


def _against_full(run: Run, pairs: dict[tuple[str, str], Contrast]) -> Sentence | None:
    best = next((v for v in run.ranking if v.is_compressed), None)
    full = _full_of(run, best)
    if full is None or best is None or not full.first.table_bytes or _score(run, full) <= 0:
        return None
    share = words.percent(best.mean("table_bytes") / full.mean("table_bytes"))
    kept = words.percent(_score(run, best) / _score(run, full))
    text = Markup("In {} of the full table's bytes, <b>{}</b> keeps <b>{}</b> of the {} of <b>{}</b>{}.")
    contrast = pairs.get((full.name, best.name)) or pairs.get((best.name, full.name))
    return Sentence("plain", text.format(share, best.name, kept, run.selection, full.name, _evidence(contrast)))


def _against_baseline(run: Run, pairs: dict[tuple[str, str], Contrast]) -> Sentence | None:
    baseline = next((v for v in run.ranking if v.is_baseline), None)
    learned = next((v for v in run.ranking if not v.is_baseline), None)
    if baseline is None or learned is None or _score(run, baseline) >= _score(run, learned):
        return None
    return _comparison(run, learned, baseline, pairs)
