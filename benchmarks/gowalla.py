"""Gowalla (NGCF split), the data set of the benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from benchmarks.peer import ROOT


def gowalla(split: str) -> csr_array:
    """Interactions of one split, float32 csr [29858, 40981] with sorted indices."""
    data = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
    frame = pl.read_parquet(data / "gowalla" / "interactions.parquet")
    shape = (int(frame["user_id"].n_unique()), int(frame["item_id"].n_unique()))
    part = frame.filter(pl.col("split") == split)
    pairs = (part["user_id"].to_numpy(), part["item_id"].to_numpy())
    matrix = csr_array((np.ones(len(part), np.float32), pairs), shape=shape)
    matrix.sort_indices()
    return matrix
