"""What a ranking run found, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embeddings.names import GRAPH
from pipelines.config_multitask import MultiTaskExperiment
from pipelines.config_ranking import RankingExperiment
from pipelines.report import words
from pipelines.run_files import Metrics, VariantResult

Json = dict[str, Any]
Results = Mapping[str, VariantResult]


def verdicts(
    metrics: Metrics, tests: Sequence[Json], config: RankingExperiment | MultiTaskExperiment | None = None
) -> list[str]:
    """The best variant, which graph compressor beat whom, and what each compression cost against full tables.

    "Loses", "gains", "beats" are said where the paired test sees a difference at 5 % after Holm's correction, or where
    there is no test; "ahead" and "behind" where it sees none.

    Args:
        metrics: of the run; only variants of the first seed are looked at, as the tests are of these.
        tests: paired tests of the first seed, as ``tests.json`` has them.
        config: tells how wide the rows are; without it their mean bytes do.
    """
    first = metrics.variants[0].seed
    results = {r.name: r for r in metrics.variants if r.seed == first}
    best = max(results.values(), key=_auc)
    bounds = words.interval(best.ci95.get("test/auc"))
    found = [f"Best is {best.name} with a test AUC of {_auc(best):.4f} {bounds}."]
    widths = {name: _width(result, config) for name, result in results.items()}
    found += [_against_rivals(ours, results, tests) for ours in results.values()]
    found += [_against_full(ours, results, widths, tests) for ours in results.values()]
    return [sentence for sentence in found if sentence]


def _pair_of(tests: Sequence[Json], a: str, b: str) -> Json | None:
    """The test of a against b, turned round where it was stored the other way."""
    for test in tests:
        if (test["a"], test["b"]) == (a, b):
            return test
        if (test["a"], test["b"]) == (b, a):
            turned = {"difference": -test["difference"], "low": -test["high"], "high": -test["low"]}
            return test | {"a": a, "b": b} | turned
    return None


def _width(result: VariantResult, config: RankingExperiment | MultiTaskExperiment | None) -> str:
    """How wide the rows of a variant are, in words: equal words are equal widths."""
    variants = config.variants if isinstance(config, RankingExperiment) else ()
    for model in (variant.model for variant in variants if variant.name == result.name):
        others = ", ".join(f"{field} {dim}" for field, dim in sorted(model.dims.items()))
        return f"{model.dim} columns ({others})" if others else f"{model.dim} columns"
    return f"{result.table_bytes / result.table_rows:g} B" if result.table_rows else "unknown width"


def _against_full(ours: VariantResult, results: Results, widths: Mapping[str, str], tests: Sequence[Json]) -> str:
    """What a compressed variant costs against each full table of its model, that of equally wide rows first.

    Rows of another width are another model, so that their loss is no loss by compression alone: it is told with the
    bytes of both. Empty for a full table, and where the model has none.
    """
    if ours.compressor == "full":
        return ""
    full: dict[str, VariantResult] = {}
    for result in results.values():
        if result.model == ours.model and result.compressor == "full":
            full.setdefault(widths[result.name], result)
    if not full:
        return ""
    own = widths[ours.name]
    if equal := full.pop(own, None):
        sentences = [f"{ours.name} has {_share(ours, equal)} and {_cost(ours, equal, tests)}."]
    else:
        sentences = [f"{ours.name} has rows of {own}, which no full table of {ours.model} has."]
    for width, other in full.items():
        sizes = f"{words.size(ours.table_bytes)} of {words.size(other.table_bytes)}, rows of {width}"
        sentences.append(f"It has {_share(ours, other)} ({sizes}) and {_cost(ours, other, tests)}.")
    return " ".join(sentences)


def _share(ours: VariantResult, full: VariantResult) -> str:
    return f"{words.percent(ours.table_bytes / full.table_bytes)} of the bytes of {full.name}"


def _cost(ours: VariantResult, full: VariantResult, tests: Sequence[Json]) -> str:
    loss, pair = 1 - _auc(ours) / _auc(full), _pair_of(tests, ours.name, full.name)
    size = f"{100 * abs(loss):.2f}\xa0%"
    if pair is None:
        return f"{'loses' if loss > 0 else 'gains'} {size} of its AUC"
    bounds, p = words.interval((pair["low"], pair["high"])), words.p_value(pair["p_holm"])
    difference = f"{words.difference(pair['difference'])} {bounds}"
    if _seen(pair):
        return f"{'loses' if loss > 0 else 'gains'} {size} of its AUC: {difference} ({p})"
    place = "behind" if loss > 0 else "ahead of"
    return f"is {size} {place} its AUC: {difference}, the paired test does not tell them apart ({p})"


def _against_rivals(ours: VariantResult, results: Results, tests: Sequence[Json]) -> str:
    """How a variant compressed by the graph did against those of equal rows and bytes that are not; empty without."""
    if not _compressors(ours) & set(GRAPH):
        return ""
    size = (ours.model, ours.table_rows, ours.table_bytes)
    said: dict[str, list[str]] = {"beats": [], "loses to": [], "ahead of": [], "behind": []}
    for rival in results.values():
        names = _compressors(rival)
        if (rival.model, rival.table_rows, rival.table_bytes) != size or not names or names & set(GRAPH):
            continue
        pair = _pair_of(tests, ours.name, rival.name)
        difference = pair["difference"] if pair else _auc(ours) - _auc(rival)
        verbs = ("beats", "loses to") if pair is None or _seen(pair) else ("ahead of", "behind")
        said[verbs[difference < 0]].append(f"{rival.name} ({words.difference(difference)})")
    clauses = [f"{verb} {words.listed(said[verb])}" for verb in ("beats", "loses to") if said[verb]]
    unsure = [f"{verb} {words.listed(said[verb])}" for verb in ("ahead of", "behind") if said[verb]]
    if unsure:
        clauses.append(f"is {words.listed(unsure)}, from which the paired test does not tell it apart")
    return f"At equal rows and bytes {ours.name} {'; '.join(clauses)}." if clauses else ""


def _compressors(result: VariantResult) -> set[str]:
    """Names of the compressors behind words such as "multi_graphhash-count=0, C3+C4 lsh"; none of a full table."""
    parts = (result.compressor or "full").split(", ")
    return {part.split(" ")[-1].split("-")[0] for part in parts} - {"full"}


def _seen(pair: Json) -> bool:
    return bool(pair["p_holm"] < 0.05)


def _auc(result: VariantResult) -> float:
    return result.metrics["test/auc"]
