"""Paired differences of a run's variants on head, tail and cold items: ``python -m pipelines.slice_differences RUN``.

Recall@10 and @50 of every slice against the variant ``--against``, with the 95 % interval of the difference: users are
resampled, the seeds of a variant are averaged first. The lists are those of ``top_items.parquet``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from pipelines.atomic import write_json
from pipelines.report.data import Run, VariantRun
from pipelines.run_directory import open_dataset
from pipelines.run_files import RunError
from recsys.intervals import bootstrap_ratios
from recsys.metrics.ranking import hit_matrix
from recsys.slices import popularity_groups

FloatArray = npt.NDArray[np.float64]
LENGTHS = (10, 50)
RESAMPLES = 1000
COLD = 5
"""Most train users of a cold item."""


def item_slices(train: csr_array) -> dict[str, npt.NDArray[np.bool_]]:
    """Which items are in each slice, bool [items]: "overall", "head", "tail" and "cold".

    Head and tail are those of :func:`recsys.slices.popularity_groups`; cold items have at most ``COLD`` train users.
    """
    counts = np.bincount(train.indices, minlength=train.shape[1]).astype(np.int64)
    groups, _ = popularity_groups(counts)
    return {"overall": np.ones(len(counts), bool), "head": groups == 0, "tail": groups == 2, "cold": counts <= COLD}


def slice_hits(lists: npt.NDArray[np.int32], relevant: csr_array, members: npt.NDArray[np.bool_], k: int) -> FloatArray:
    """Relevant items of a slice that are among the first ``k`` of each user, float64 [U].

    Args:
        lists: int32 [U, K] item indices, best first, -1 for none.
        relevant: csr [U, items], sorted indices.
        members: bool [items], of the slice.
        k: at most K.
    """
    top = lists[:, :k]
    hits = hit_matrix(top, relevant) & members[top]
    found: FloatArray = hits.sum(axis=1).astype(np.float64)
    return found


def differences(run: Path, against: str, lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, Any]]:
    """One row for each variant, slice and length: its recall, that of ``against``, their difference and its interval.

    Raises:
        RunError: The run has no variant ``against``, or a variant without lists.
    """
    found, dataset = Run(run), open_dataset(run)
    names = [variant.name for variant in found.variants]
    if against not in names:
        raise RunError(f"{run} has no variant {against!r} to compare with; --against takes one of {', '.join(names)}")
    relevant, slices = dataset.matrix("test"), item_slices(dataset.matrix("train"))
    users = np.flatnonzero(np.diff(relevant.indptr))
    relevant = relevant[users]
    relevant.sort_indices()
    lists = {variant.name: _lists(found, variant, users) for variant in found.variants}
    rows: list[dict[str, Any]] = []
    for label, members in slices.items():
        pairs = np.asarray(relevant @ members.astype(np.float64))
        for k in lengths:
            hits = {n: np.mean([slice_hits(x, relevant, members, k) for x in of], axis=0) for n, of in lists.items()}
            for name in names:
                if name != against and pairs.any():
                    rows.append(
                        {"variant": name, "slice": label, "metric": f"recall@{k}"}
                        | _difference(hits[name], hits[against], pairs)
                    )
    return rows


def _difference(mine: FloatArray, theirs: FloatArray, pairs: FloatArray) -> dict[str, Any]:
    low, high = bootstrap_ratios((mine - theirs)[:, None], pairs[:, None], RESAMPLES, 0)
    total = pairs.sum()
    return {
        "value": mine.sum() / total,
        "against": theirs.sum() / total,
        "difference": (mine - theirs).sum() / total,
        "ci95": [float(low[0]), float(high[0])],
        "pairs": int(total),
    }


def _lists(run: Run, variant: VariantRun, users: npt.NDArray[np.intp]) -> list[npt.NDArray[np.int32]]:
    """The lists of a variant by seed, int32 [U, K] in the order of ``users``."""
    found = []
    for result in variant.results:
        frame = run.files.top_items(variant.name, result.seed)
        if frame is None or not np.array_equal(frame["user"].to_numpy(), users):
            raise RunError(f"{run.files.directory} has no lists of {variant.name}, seed {result.seed}; run it again")
        found.append(np.asarray(frame["items"].to_list(), dtype=np.int32))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the differences of every run, and write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--against", default="no-ssl")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    datasets = {}
    for run in options.runs:
        try:
            rows = differences(run, options.against)
        except RunError as error:
            parser.error(str(error))
        datasets[Run(run).results.dataset.name] = rows
        for row in rows:
            low, high = row["ci95"]
            verdict = "better" if low > 0 else "worse" if high < 0 else "-"
            print(
                f"{run.name:40s} {row['variant']:12s} {row['slice']:8s} {row['metric']:10s} {row['value']:.4f}"
                f" {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}] {verdict}"
            )
    if options.out is not None:
        write_json(options.out, {"against": options.against, "datasets": datasets})


if __name__ == "__main__":
    main()
