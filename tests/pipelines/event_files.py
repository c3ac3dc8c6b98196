"""Small files of events in the layouts that people bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.ranking.sources import CRITEO_FIELDS, CRITEO_NUMERIC


def criteo_rows(count: int, seed: int = 0) -> pl.DataFrame:
    """Columns of Criteo's layout with missing values and labels by chance."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {"label": rng.integers(0, 2, count)}
    for name in CRITEO_NUMERIC:
        columns[name] = pl.Series(rng.integers(-2, 500, count)).set(pl.Series(rng.random(count) < 0.2), None)
    for name in CRITEO_FIELDS:
        columns[name] = pl.Series([f"{v:08x}" for v in rng.zipf(1.5, count) % 1000]).set(
            pl.Series(rng.random(count) < 0.1), None
        )
    return pl.DataFrame(columns)


def own_files(experiment: str, folder: Path) -> list[str]:
    """Write files for a packaged experiment that comes without data, and return the settings that point it at them.

    Odd items, and odd values of C3, are clicked. An experiment with data gets neither.
    """
    rng = np.random.default_rng(0)
    match experiment:
        case "ctr_libfm":
            for split, count in {"train": 2000, "valid": 400, "test": 400}.items():
                draws = zip(rng.integers(0, 40, count), rng.integers(0, 30, count), strict=True)
                lines = [f"{1 if item % 2 else -1} {user}:1 {100 + item}:1 {200 + user % 3}:1" for user, item in draws]
                (folder / f"{split}.libfm").write_text("\n".join(lines) + "\n")
            return [f"dataset.source={folder}"]
        case "ctr_criteo":
            odd = pl.col("C3").str.to_integer(base=16) % 2 == 1
            rows = criteo_rows(1500).with_columns(label=odd.fill_null(value=False).cast(pl.Int64))
            rows.write_csv(folder / "train.txt", separator="\t", include_header=False)
            return [f"dataset.source={folder / 'train.txt'}"]
    return []
