"""Write the tables of README.md and docs/ from benchmarks/results: ``python -m benchmarks.tables [--add RUN]``.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. NAME is a file of benchmarks/results without
``.json``, or of its directory ``published`` (benchmarks/reproduction.py), or ``benchmarks`` for one line per benchmark.
NAME:FIELD is the AUC of a ranking experiment by how many positives train has of an event's value of the field.
``--add RUN`` first copies a run's metrics.json there, with its paired tests where it has several tasks.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks import reproduction
from pipelines.atomic import write_json

ROOT = Path(__file__).resolve().parent.parent
DOCS = ("benchmarks", "compression", "models", "generative", "rankers", "semantic_ids", "sparse_training", "two_tower")
PAGES = ("README.md", *(f"docs/{page}.md" for page in DOCS))
BENCHMARKS = (
    "topk",
    "bpr",
    "table",
    "ingest",
    "auc",
    "cluster",
    "ials",
    "lightgcn",
    "sparse_bytes",
    "sparse_step",
    "rqkmeans",
    "ctr",
    "seqloader",
    "sasrec",
    "beam",
    "experts",
)
COLUMNS = (
    ("recall@10", "ndcg@10", "recall_unmasked@10", "ndcg_unmasked@10"),
    ("recall@20", "ndcg@20"),
    ("recall@10", "recall@50"),
    ("auc", "log_loss"),
    ("watch/auc", "rating/rmse"),
    ("rated/auc", "rating/rmse"),
)
"""Metrics of a table, the first line of which a run has all."""
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Json = dict[str, Any]


def render(text: str, results: Path) -> str:
    """``text`` with every table made anew from the JSON files in ``results``."""
    return BLOCK.sub(lambda match: match[1] + table(match[2], results) + match[3], text)


def table(name: str, results: Path) -> str:
    """One table in Markdown, or a line that says how to measure it."""
    if name == "benchmarks":
        found = [json.loads(path.read_text("utf-8")) for path in map(results.joinpath, files()) if path.exists()]
        return _summaries(found) if found else "Not measured yet: `make bench`.\n"
    published = results / "published" / f"{name}.json"
    if published.exists():
        rows = json.loads(published.read_text("utf-8"))["rows"]
        lines = [_line(*reproduction.cells(row, results)) for row in rows]
        return _line(*reproduction.COLUMNS) + _rule(len(reproduction.COLUMNS)) + "".join(lines)
    name, _, field = name.partition(":")
    path = results / f"{name}.json"
    if not path.exists():
        command = f"recsys bench {name}" if name in BENCHMARKS else f"recsys run {name}"
        return f"Not measured yet: `{command}`.\n"
    result = json.loads(path.read_text("utf-8"))
    if field:
        return _slices(result, f"train positives of the {field}")
    if "datasets" in result:
        return _differences(result)
    return _variants(result) if "variants" in result else _rows(result)


def files() -> list[str]:
    """Names of the benchmarks' result files."""
    return [f"{name}.json" for name in BENCHMARKS]


def _variants(run: Json) -> str:
    """An experiment's metrics.json: one line per variant, the mean of its seeds."""
    data, first = run["dataset"], run["variants"][0]
    shown = next(names for names in COLUMNS if all(f"test/{name}" in first["metrics"] for name in names))
    names = [name.replace("ndcg", "NDCG") for name in shown]
    count = sum(variant["name"] == first["name"] for variant in run["variants"])
    spread = "95 %" if count == 1 else f"{count} seeds"
    tests = {test["b"]: test for test in run.get("tests", []) if f"{test['task']}/{test['metric']}" == shown[0]}
    against = [f"{test['a']} minus it, 95 %, Holm's p" for test in list(tests.values())[:1]]
    against += ["over the seeds, 95 %"] if against and count > 1 else []
    head = ["variant", "rows", "table MiB", names[0], spread, *names[1:], "train s", *against]
    lines = [_line(*head), _rule(len(head))]
    for name in dict.fromkeys(variant["name"] for variant in run["variants"]):
        seeds = [variant for variant in run["variants"] if variant["name"] == name]
        cells = _cells(seeds, shown)
        lines.append(_line(name, *cells, *_tested(tests.get(name))[: len(against)]))
    on_test = run["selected_on"] == "test"
    trained = data["train"] + (data["valid"] if on_test else 0)
    facts = f"{data['name']}: {data['users']:,} users, {data['items']:,} items, {trained:,} training interactions"
    chosen = "; settings chosen on test" if on_test else ""
    return "".join(lines) + f"\n{facts}{chosen}; data {data['hash'][:12]}; `{run['command']}`.\n"


def _cells(seeds: list[Json], shown: tuple[str, ...]) -> list[str]:
    """Size, the first metric with its interval or its range over the seeds, the other metrics, and the seconds."""
    variant, learned = seeds[0], seeds[0]["table_bytes"] > 0
    values = {name: [seed["metrics"][f"test/{name}"] for seed in seeds] for name in shown}
    means = [f"{sum(column) / len(column):.4f}" for column in values.values()]
    interval = variant["ci95"].get(f"test/{shown[0]}")
    if len(seeds) > 1:
        interval = min(values[shown[0]]), max(values[shown[0]])
    return [
        f"{variant['table_rows']:,}" if learned else "-",
        f"{variant['table_bytes'] / 2**20:.2f}" if learned else "-",
        means[0],
        "[{:.4f}, {:.4f}]".format(*interval) if interval else "-",
        *means[1:],
        f"{sum(seed['seconds']['train'] for seed in seeds) / len(seeds):,.0f}",
    ]


def _slices(run: Json, by: str) -> str:
    """AUC of the first seed of each variant, with its interval."""
    found: dict[str, list[Json]] = {}
    for variant in run["variants"]:
        found.setdefault(variant["name"], variant["slices"][by])
    labels = {part["label"]: f"{part['label']}: {part['events']:,} events" for part in run["variants"][0]["slices"][by]}
    lines = [_line("variant", *labels.values()), _rule(1 + len(labels))]
    for name, parts in found.items():
        cells = {part["label"]: "{auc:.4f} [{low:.4f}, {high:.4f}]".format(**part) for part in parts}
        lines.append(_line(name, *(cells.get(label, "-") for label in labels)))
    return "".join(lines) + f"\nAUC by {by}, 95 % intervals.\n"


def _tested(test: Json | None) -> tuple[str, str]:
    """The paired difference on the test events of the first seed, and that over the seeds."""
    if test is None:
        return "-", "-"
    seeds = test["over_seeds"]
    return f"{_difference(test)}, {test['p_holm']:.2g}", _difference(seeds) if seeds else "-"


def _difference(test: Json) -> str:
    """With its interval; without one where JSON has null for the ends of an infinite one."""
    interval = "" if test["low"] is None else f" [{test['low']:+.4f}, {test['high']:+.4f}]"
    return f"{test['difference']:+.4f}{interval}"


def _differences(found: Json) -> str:
    """What ``python -m pipelines.slice_differences`` wrote: a line per variant and slice, a column per metric."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for data, rows in found["datasets"].items():
        for row in rows:
            cell = "{:.4f}, {:+.4f} [{:+.4f}, {:+.4f}]".format(row["value"], row["difference"], *row["ci95"])
            lines.setdefault((data, row["slice"], row["variant"]), {})[row["metric"]] = cell
    metrics = list(dict.fromkeys(metric for cells in lines.values() for metric in cells))
    head = _line("data", "slice", "variant", *(f"{metric}, difference" for metric in metrics))
    body = (_line(*names, *(cells.get(metric, "-") for metric in metrics)) for names, cells in lines.items())
    ends = f"\nDifferences from `{found['against']}`, 95 % intervals over users, seeds averaged.\n"
    return head + _rule(3 + len(metrics)) + "".join(body) + ends


def _rows(bench: Json) -> str:
    """One benchmark: one line per case."""
    lines = [_line("case", "peer", "ours", "theirs", "unit", "ratio [min, max]", "of the limit"), _rule(7)]
    for row in bench["rows"]:
        ratio = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        figures = (f"{row['ours']:,.4g}", f"{row['theirs']:,.4g}")
        lines.append(_line(row["case"], row["peer"], *figures, row["unit"], ratio, _share(row["limit_fraction"])))
    where = f"{bench['machine']['cpu']}, {bench['threads']} threads, {bench['date'][:10]}"
    return "".join(lines) + f"\n{where}; `{bench['command']}`.\n"


def _summaries(benches: list[Json]) -> str:
    lines = [_line("benchmark", "peer", "ratio", "of the limit"), _rule(4)]
    for bench in benches:
        summary = bench["summary"]
        lines.append(
            _line(bench["name"], summary["peer"], f"{summary['ratio']:.2f}", _share(summary["limit_fraction"]))
        )
    return "".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


def _rule(columns: int) -> str:
    return "|" + " --- |" * columns + "\n"


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.0%}"


def add(run: Path, results: Path) -> None:
    """Copy what a run measured to ``results``."""
    result = json.loads((run / "metrics.json").read_text("utf-8"))
    tests = run / "tests.json"
    found = json.loads(tests.read_text("utf-8")) if tests.exists() else []
    if any("task" in test for test in found):
        result["tests"] = found
    write_json(results / f"{result['experiment']}.json", result)


def main() -> None:
    """Rewrite the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, metavar="RUN", help="run directory whose metrics.json is to be shown")
    run = parser.parse_args().add
    results = ROOT / "benchmarks" / "results"
    if run is not None:
        add(run, results)
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    main()
