"""Tables in the documentation are the committed results, and nothing else."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import yaml

from benchmarks.tables import PAGES, add, render, table

ROOT = Path(__file__).resolve().parent.parent.parent

RUN = {
    "experiment": "toy",
    "dataset": {"name": "toy", "users": 1200, "items": 30, "train": 5000, "valid": 500, "hash": "abcdef0123456789"},
    "selected_on": "test",
    "variants": [
        {
            "name": "mf-full",
            "table_rows": 1232,
            "table_bytes": 2**20,
            "metrics": {"test/recall@20": 0.12345, "test/ndcg@20": 0.1},
            "ci95": {"test/recall@20": [0.1, 0.2]},
            "seconds": {"train": 61.4, "evaluate": 1.0},
            "seed": 0,
        },
        {
            "name": "popularity",
            "table_rows": 0,
            "table_bytes": 0,
            "metrics": {"test/recall@20": 0.01, "test/ndcg@20": 0.005},
            "ci95": {},
            "seconds": {"train": 0.1, "evaluate": 1.0},
            "seed": 0,
        },
    ],
    "command": "recsys run toy",
}
BENCH = {
    "name": "auc",
    "summary": {"peer": "scikit-learn 1.9", "ratio": 7.126, "limit_fraction": 0.5},
    "rows": [
        {
            "case": "a|b", "peer": "scikit-learn 1.9", "ours": 12345.678, "theirs": 2.0, "unit": "s", "ratio": 7.126,
            "low": 6.0, "high": 8.0, "limit_fraction": None,
        }
    ],
    "machine": {"cpu": "Some CPU"},
    "threads": 2,
    "date": "2026-01-02T03:04:05",
    "command": "recsys bench auc",
}  # fmt: skip


def test_tables_show_what_the_json_says_and_are_stable(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(json.dumps(RUN))
    (tmp_path / "auc.json").write_text(json.dumps(BENCH))
    blocks = "".join(
        f"<!-- table {name} -->\nold\n<!-- end -->\n" for name in ("toy", "auc", "benchmarks", "topk", "x")
    )
    page = render(f"before\n{blocks}after\n", tmp_path)
    assert "| mf-full | 1,232 | 1.00 | 0.1235 | [0.1000, 0.2000] | 0.1000 | 61 |" in page
    assert "| popularity | - | - | 0.0100 | - | 0.0050 | 0 |" in page
    facts = "toy: 1,200 users, 30 items, 5,500 training interactions; settings chosen on test; data abcdef012345"
    assert f"{facts}; `recsys run toy`." in page
    assert "| a/b | scikit-learn 1.9 | 1.235e+04 | 2 | s | 7.13 [6.00, 8.00] | - |" in page
    assert "| auc | scikit-learn 1.9 | 7.13 | 50% |" in page
    assert "Not measured yet: `recsys bench topk`." in page and "Not measured yet: `recsys run x`." in page
    assert "old" not in page and page.startswith("before\n") and page.endswith("after\n")
    assert render(page, tmp_path) == page


PUBLISHED = {
    "rows": [
        {
            "model": model,
            "data": "toy",
            "protocol": "masked",
            "published": {"recall@10": 0.0648, "ndcg@10": 0.0384, "source": "paper"},
            "again": again,
            "ours": {"experiment": "toy", "variant": variant, "command": f"recsys run toy 'variants=[{variant}]'"},
        }
        for model, variant, again in (
            ("TIGER", "tiger", {"recall@10": 0.0634, "ndcg@10": None, "source": "rerun"}),
            ("LIGER", "liger", None),
        )
    ]
}


def test_seeds_are_averaged_and_tests_of_several_tasks_are_shown(tmp_path: Path) -> None:
    first = RUN["variants"][0]
    variants = [
        first
        | {"name": name, "seed": seed, "metrics": {"test/watch/auc": auc + seed / 100, "test/rating/rmse": 1 + seed}}
        for name, auc in (("comet-plus", 0.9), ("top-k", 0.8), ("hash", 0.7))
        for seed in range(2)
    ]
    pair = {"task": "watch", "metric": "auc", "a": "comet-plus", "b": "top-k"}
    found = {"difference": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.0123}
    tests = [
        pair | found | {"over_seeds": {"difference": 0.2, "low": -0.1, "high": 0.5, "p": 0.1}},
        pair | found | {"b": "hash", "low": None, "high": None, "over_seeds": None},
        pair | found | {"task": "rating", "metric": "rmse", "difference": -1.0, "over_seeds": None},
    ]
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps(RUN | {"variants": variants}))
    (run / "tests.json").write_text(json.dumps(tests))
    add(run, tmp_path)
    lines = table("toy", tmp_path).splitlines()
    assert lines[0].endswith("| train s | comet-plus minus it, 95 %, Holm's p | over the seeds, 95 % |")
    assert lines[2] == "| comet-plus | 1,232 | 1.00 | 0.9050 | [0.9000, 0.9100] | 1.5000 | 61 | - | - |"
    assert lines[3].endswith("| 61 | +0.1000 [+0.0500, +0.1500], 0.012 | +0.2000 [-0.1000, +0.5000] |")
    assert lines[4].endswith("| 0.7050 | [0.7000, 0.7100] | 1.5000 | 61 | +0.1000, 0.012 | - |")


def test_slices_of_a_ranker_are_a_column_each_for_the_first_seed(tmp_path: Path) -> None:
    part = {"label": "none", "events": 1077, "positives": 3, "auc": 0.5, "low": 0.4, "high": 0.6}
    slices = {"train positives of the item": [part, part | {"label": "1 to 4", "events": 9}]}
    variants = [
        {"name": "full", "slices": slices},
        {"name": "codes", "slices": {"train positives of the item": [part | {"auc": 0.55}]}},
        {"name": "codes", "slices": {"train positives of the item": [part | {"auc": 0.9}]}},
    ]
    (tmp_path / "toy.json").write_text(json.dumps({"variants": variants}))
    lines = table("toy:item", tmp_path).splitlines()
    assert lines[0] == "| variant | none: 1,077 events | 1 to 4: 9 events |"
    assert lines[3] == "| codes | 0.5500 [0.4000, 0.6000] | - |" and len(lines) == 6


def test_differences_by_slice_have_a_line_for_each_variant_and_slice(tmp_path: Path) -> None:
    row = {"variant": "cfm", "slice": "tail", "metric": "recall@10", "value": 0.02, "against": 0.01, "pairs": 9}
    rows = [
        row | {"difference": 0.01, "ci95": [-0.002, 0.03]},
        row | {"metric": "recall@50", "difference": 0, "ci95": [0, 0]},
    ]
    (tmp_path / "slices.json").write_text(json.dumps({"against": "no-ssl", "datasets": {"anime": rows}}))
    lines = table("slices", tmp_path).splitlines()
    assert lines[0] == "| data | slice | variant | recall@10, difference | recall@50, difference |"
    assert (
        lines[2] == "| anime | tail | cfm | 0.0200, +0.0100 [-0.0020, +0.0300] | 0.0200, +0.0000 [+0.0000, +0.0000] |"
    )
    assert lines[-1].startswith("Differences from `no-ssl`")


def test_a_reproduction_has_what_others_report_and_our_mean_or_the_command_that_measures_it(tmp_path: Path) -> None:
    seeds = [
        {"name": "tiger", "metrics": {"test/recall@10": r, "test/ndcg@10": 0.04, "test/recall_unmasked@10": 0.05}}
        for r in (0.06, 0.07)
    ]
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "others.json").write_text(json.dumps(PUBLISHED))
    (tmp_path / "toy.json").write_text(json.dumps({"variants": [*seeds, {"name": "x", "metrics": {}}]}))
    page = render("<!-- table others -->\n<!-- end -->\n", tmp_path)
    published = "| toy | masked | 0.0648 / 0.0384 (paper) |"
    assert f"| TIGER {published} 0.0634 / - (rerun) | 0.0650 / 0.0400, 2 seeds | 0.0500 / - |" in page
    assert f"| LIGER {published} - | not measured: `recsys run toy 'variants=[liger]'` | - |" in page


def test_every_row_of_a_reproduction_is_a_variant_of_an_experiment() -> None:
    tables = sorted((ROOT / "benchmarks" / "results" / "published").glob("*.json"))
    assert tables
    for row in [row for path in tables for row in json.loads(path.read_text())["rows"]]:
        command, ours = shlex.split(row["ours"]["command"]), row["ours"]
        config = yaml.safe_load((ROOT / "configs" / "experiments" / f"{command[2]}.yaml").read_text())
        settings = dict(setting.split("=", 1) for setting in command[3:])
        names = [variant["name"] for variant in config["variants"]]
        assert ours["variant"] in names and set(yaml.safe_load(settings.get("variants", "[]"))) <= set(names)
        assert settings.get("experiment", config["experiment"]) == ours["experiment"]
        assert config["evaluate"]["unmasked"] and 10 in config["evaluate"]["k"]


def test_items_without_a_train_positive_are_those_that_train_lacks_in_ctr_scientific() -> None:
    """What docs/rankers.md says of its slices."""
    for variant in json.loads((ROOT / "benchmarks" / "results" / "ctr_scientific.json").read_text())["variants"]:
        by_events, by_positives = (
            variant["slices"][f"train {kind} of the item_id"] for kind in ("events", "positives")
        )
        assert by_events[0] == by_positives[0] and (by_events[0]["label"], by_events[0]["events"]) == ("none", 77)
        assert sum(part["events"] for part in by_events) == sum(part["events"] for part in by_positives) == 3 * 8442


def test_the_pages_show_the_committed_results() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        assert render(text, ROOT / "benchmarks" / "results") == text, f"{page} is old: python -m benchmarks.tables"
