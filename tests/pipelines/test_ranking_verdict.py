"""The sentences at the top of a ranking report."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config_ranking import RankingExperiment
from pipelines.ranking.verdict import verdicts
from pipelines.run_files import Metrics, VariantResult
from pipelines.run_schema import DatasetFacts

ROWS = {"full": 10}
"""Rows of a variant by compressor; 5 where compressed."""


def result(name: str, compressor: str, auc: float, width: int = 4, **other: Any) -> VariantResult:
    """A variant whose rows have ``width`` bytes."""
    rows = other.pop("rows", ROWS.get(compressor, 5))
    own = {"model": "dcn_v2", "table_rows": rows, "table_bytes": rows * width, "metrics": {"test/auc": auc}}
    return VariantResult(name=name, compressor=compressor, **own | other)


def paired(a: str, b: str, difference: float, p: float) -> dict[str, Any]:
    low, high = difference - 0.02, difference + 0.02
    return {"a": a, "b": b, "difference": difference, "low": low, "high": high, "p": p, "p_holm": p}


def said(
    variants: list[VariantResult], tests: list[dict[str, Any]], config: RankingExperiment | None = None
) -> list[str]:
    """The verdicts but for the first, in plain spaces."""
    facts = DatasetFacts(name="d", users=1, items=1, train=1, hash="x")
    metrics = Metrics(experiment="e", dataset=facts, variants=tuple(variants))
    first, *found = [sentence.replace("\xa0", " ") for sentence in verdicts(metrics, tests, config)]
    assert first.startswith("Best is ")
    return found


def test_loss_win_and_doubt() -> None:
    variants = [result("f", "full", 0.8), result("g", "graphhash", 0.79), result("m", "modulo", 0.7)]
    found = said(variants, [paired("f", "g", 0.01, 0.3), paired("g", "m", 0.09, 0.002)])
    assert found == [
        "At equal rows and bytes g beats m (+0.0900).",
        "g has 50 % of the bytes of f and is 1.25 % behind its AUC: −0.0100 [−0.0300, 0.0100],"
        " the paired test does not tell them apart (p = .300).",
        "m has 50 % of the bytes of f and loses 12.50 % of its AUC.",
    ]
    assert (
        "g has 50 % of the bytes of f and loses 1.25 % of its AUC: −0.0100"
        in said(variants, [paired("f", "g", 0.01, 0.001)])[1]
    )


@pytest.mark.parametrize("name", ["graphhash", "double_graphhash", "baco", "residual_codes", "full, C3+C4 graphhash"])
def test_each_graph_compressor_meets_its_rivals_in_one_line(name: str) -> None:
    rivals = ["modulo", "universal_hash", "double_hash", "quotient_remainder", "frequency", "lsh, C3 double_frequency"]
    ours = result("ours", name, 0.8)
    others = [result(f"r{place}", rival, 0.7 + place / 100) for place, rival in enumerate(rivals)]
    others += [result("also", "multi_graphhash-count=4", 0.6), result("whole", "full", 0.9, rows=5)]
    found = [sentence for sentence in said([ours, *others], []) if sentence.startswith("At equal rows and bytes ")]
    assert [sentence.removeprefix("At equal rows and bytes ") for sentence in found] == [
        "ours beats r0 (+0.1000), r1 (+0.0900), r2 (+0.0800), r3 (+0.0700), r4 (+0.0600) and r5 (+0.0500).",
        "also loses to r0 (−0.1000), r1 (−0.1100), r2 (−0.1200), r3 (−0.1300), r4 (−0.1400) and r5 (−0.1500).",
    ]


def test_a_rival_that_the_test_does_not_tell_apart_is_not_beaten() -> None:
    variants = [result("g", "multi_graphhash-count=0-head_share=0.3", 0.8)]
    variants += [result(name, "double_hash", 0.75) for name in ("a", "b", "c", "d")]
    tests = [
        paired("g", "a", 0.05, 0.001),
        paired("b", "g", 0.02, 0.049),
        paired("g", "c", 0.001, 0.05),
        paired("d", "g", 0.002, 0.4),
    ]
    assert said(variants, tests) == [
        "At equal rows and bytes g beats a (+0.0500); loses to b (−0.0200); is ahead of c (+0.0010) and behind d"
        " (−0.0020), from which the paired test does not tell it apart."
    ]


def test_rivals_have_equal_rows_and_bytes_and_the_model() -> None:
    ours = result("g", "graphhash", 0.8)
    unequal = [
        result("fewer", "modulo", 0.7, rows=4, table_bytes=ours.table_bytes),
        result("wider", "modulo", 0.7, width=8),
        result("other", "modulo", 0.7, model="dlrm"),
        result("again", "modulo", 0.7, seed=1),
    ]
    assert said([ours, *unequal], []) == []


def test_a_variant_is_held_against_the_full_table_of_its_width_first() -> None:
    fulls = [result("narrow", "full", 0.8, 40), result("wide", "full", 0.9, 80)]
    variants = [*fulls, result("m", "modulo", 0.72, 80), result("n", "modulo", 0.79, 40)]
    variants.append(result("alone", "full", 0.7, 80, model="final_mlp"))
    found = said(variants, [paired("wide", "m", 0.18, 0.001), paired("narrow", "m", 0.08, 0.2)])
    assert found == [
        "m has 50 % of the bytes of wide and loses 20.00 % of its AUC: −0.1800 [−0.2000, −0.1600]"
        " (p = .001). It has 100 % of the bytes of narrow (400 B of 400 B, rows of 40 B) and is 10.00 % behind its AUC:"
        " −0.0800 [−0.1000, −0.0600], the paired test does not tell them apart (p = .200).",
        "n has 50 % of the bytes of narrow and loses 1.25 % of its AUC."
        " It has 25 % of the bytes of wide (200 B of 800 B, rows of 80 B) and loses 12.22 % of its AUC.",
    ]


def test_the_only_full_table_may_be_of_another_width() -> None:
    found = said([result("f", "full", 0.8, 40), result("m", "modulo", 0.82, 80)], [])
    assert found == [
        "m has rows of 80 B, which no full table of dcn_v2 has."
        " It has 100 % of the bytes of f (400 B of 400 B, rows of 40 B) and gains 2.50 % of its AUC."
    ]
    assert said([result("f", "full", 0.8, model="dlrm"), result("m", "modulo", 0.7)], []) == []


def test_widths_are_those_of_the_configuration() -> None:
    """Under dims of fields the mean bytes of a row change when rows of one field go, though no row is narrower."""
    model: dict[str, Any] = {"name": "dcn_v2", "dim": 8}
    config = RankingExperiment.model_validate(
        {
            "experiment": "e",
            "dataset": {"format": "frappe", "name": "frappe", "source": "data:frappe"},
            "variants": [
                {"name": "f", "model": model | {"dims": {"day": 2}}},
                {"name": "plain", "model": model},
                {"name": "m", "model": model | {"dims": {"day": 2}}, "compressor": {"name": "modulo"}},
                {"name": "n", "model": model | {"dim": 3}, "compressor": {"name": "modulo"}},
            ],
        }
    )
    variants = [result("f", "full", 0.8, 20), result("plain", "full", 0.8, 32)]
    variants += [result("m", "modulo", 0.7, 15), result("n", "modulo", 0.7, 12)]
    first, second = said(variants, [], config)
    assert first.startswith("m has 38 % of the bytes of f and loses 12.50 % of its AUC. It has 23 %")
    assert "of plain (75 B of 320 B, rows of 8 columns)" in first
    assert second.startswith(
        "n has rows of 3 columns, which no full table of dcn_v2 has. It has 30 % of the bytes of f ("
    )
    assert "60 B of 200 B, rows of 8 columns (day 2)" in second
