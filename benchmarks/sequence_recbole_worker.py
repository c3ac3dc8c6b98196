"""RecBole's sequence loader and SASRec, in its own environment. Argument: an .npz with ``items`` and ``offsets``.

The last two events of every user are its validation and test; every other prefix is a row of its training data.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from benchmarks import THREADS
from benchmarks.worker import serve


def _write(path: str, directory: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        items, offsets = arrays["items"], arrays["offsets"]
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    lines = [f"{u}\t{i}\t{t}" for t, (u, i) in enumerate(zip(users, items, strict=True))]
    (directory / "job").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (directory / "job" / "job.inter").write_text(header + "\n".join(lines) + "\n")


class _Job:
    """RecBole's training data, model and trainer, kept between requests."""

    def __init__(self, path: str, *, length: int, batch_size: int, dim: int, layers: int, dropout: float) -> None:
        torch.set_num_threads(THREADS)
        self.directory = tempfile.TemporaryDirectory()
        os.chdir(self.directory.name)  # its trainer writes logs where it runs
        _write(path, Path(self.directory.name))
        config = Config(
            model="SASRec",
            dataset="job",
            config_dict={
                "data_path": self.directory.name,
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "MAX_ITEM_LIST_LENGTH": length,
                "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
                "hidden_size": dim,
                "inner_size": dim,
                "n_layers": layers,
                "n_heads": 1,
                "hidden_dropout_prob": dropout,
                "attn_dropout_prob": dropout,
                "hidden_act": "relu",
                "loss_type": "CE",
                "train_neg_sample_args": None,
                "train_batch_size": batch_size,
                "use_gpu": False,
                "show_progress": False,
                "state": "ERROR",
                "checkpoint_dir": self.directory.name,
            },
        )
        init_seed(0, reproducibility=True)
        self.data, _, _ = data_preparation(config, create_dataset(config))
        self.model = SASRec(config, self.data.dataset)
        self.trainer = Trainer(config, self.model)
        self.rows = len(self.data.dataset)

    def load(self, batches: int) -> tuple[float, int]:
        """Seconds and rows of so many batches of a new epoch."""
        start = time.perf_counter()
        rows = sum(len(batch["user_id"]) for batch in itertools.islice(self.data, batches))
        return time.perf_counter() - start, rows

    def train(self, batches: int) -> tuple[float, int]:
        """Likewise, with a step of its trainer for each."""
        counted = _Counted(itertools.islice(self.data, batches))
        start = time.perf_counter()
        self.trainer._train_epoch(counted, 0, show_progress=False)
        return time.perf_counter() - start, counted.rows


class _Counted:
    """Batches whose rows are counted on the way."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.rows = 0

    def __iter__(self) -> Any:
        for batch in self.batches:
            self.rows += len(batch["user_id"])
            yield batch


_JOBS: list[_Job] = []


def job(request: dict[str, Any]) -> dict[str, Any]:
    """Load or train ``batches``; the seconds are those of ``prefixes`` rows at the same rate."""
    if not _JOBS:
        _JOBS.append(_Job(sys.argv[1], **request["settings"]))
    own = _JOBS[0]
    seconds, rows = (own.train if request["command"] == "train" else own.load)(int(request["batches"]))
    parameters = sum(p.numel() for p in own.model.parameters())
    found = {"rows": rows, "rows_of_an_epoch": own.rows, "seconds_measured": seconds, "parameters": parameters}
    return {"seconds": seconds * request["prefixes"] / rows, "quality": found}


if __name__ == "__main__":
    serve(job)
