"""The BPR of RecBole, in its own environment. Argument: an .npz with ``indptr``, ``indices``, ``shape`` of train."""

from __future__ import annotations

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
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from recbole.utils import init_seed

from benchmarks import THREADS
from benchmarks.worker import serve


def _atomic_files(path: str, directory: Path) -> tuple[int, int]:
    """Train as the three benchmark files of RecBole; validation and test are not used and repeat a few lines."""
    with np.load(path, allow_pickle=False) as arrays:
        indptr, indices, shape = arrays["indptr"], arrays["indices"], arrays["shape"]
    users = np.repeat(np.arange(shape[0]), np.diff(indptr))
    lines = [f"{u}\t{i}" for u, i in zip(users, indices, strict=True)]
    (directory / "job").mkdir()
    for part, rows in (("train", lines), ("valid", lines[:100]), ("test", lines[:100])):
        (directory / "job" / f"job.{part}.inter").write_text("user_id:token\titem_id:token\n" + "\n".join(rows) + "\n")
    return int(shape[0]), int(shape[1])


class _Training:
    """RecBole's trainer with its model and data, kept between requests."""

    def __init__(self, path: str, lr: float, batch_size: int) -> None:
        torch.set_num_threads(THREADS)
        self.directory = tempfile.TemporaryDirectory()
        os.chdir(self.directory.name)  # its trainer writes logs where it runs
        self.users, self.items = _atomic_files(path, Path(self.directory.name))
        config = Config(
            model="BPR",
            dataset="job",
            config_dict={
                "data_path": self.directory.name,
                "benchmark_filename": ["train", "valid", "test"],
                "load_col": {"inter": ["user_id", "item_id"]},
                "USER_ID_FIELD": "user_id",
                "ITEM_ID_FIELD": "item_id",
                "embedding_size": 64,
                "train_batch_size": batch_size,
                "learning_rate": lr,
                "use_gpu": False,
                "show_progress": False,
                "state": "ERROR",
                "checkpoint_dir": self.directory.name,
                "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            },
        )
        init_seed(0, reproducibility=True)
        dataset = create_dataset(config)
        self.data, _, _ = data_preparation(config, dataset)
        self.model = BPR(config, self.data.dataset)
        self.trainer = Trainer(config, self.model)
        self.epoch = 0

    def run(self, epochs: int) -> float:
        """Seconds of ``epochs`` passes of its own training loop."""
        start = time.perf_counter()
        for _ in range(epochs):
            self.trainer._train_epoch(self.data, self.epoch, show_progress=False)
            self.epoch += 1
        return time.perf_counter() - start

    def save(self, path: str) -> None:
        """Vectors in our order of ids; RecBole's row 0 is padding, its tokens are our indices as text."""
        dataset = self.data.dataset
        sides = {}
        for name, field, count, table in (
            ("users", "user_id", self.users, self.model.user_embedding),
            ("items", "item_id", self.items, self.model.item_embedding),
        ):
            vectors = np.zeros((count, 64), np.float32)
            tokens = np.array(dataset.field2id_token[field][1:], dtype=np.int64)
            vectors[tokens] = table.weight.detach().numpy()[1:]
            sides[name] = vectors
        np.savez(path, **sides)


_TRAININGS: dict[tuple[float, int], _Training] = {}


def job(request: dict[str, Any]) -> dict[str, Any]:
    """Train ``epochs`` more; with ``vectors`` save user and item vectors there."""
    key = (float(request.get("lr", 1e-3)), int(request.get("batch_size", 4096)))
    if key not in _TRAININGS:
        _TRAININGS[key] = _Training(sys.argv[1], *key)
    training = _TRAININGS[key]
    seconds = training.run(int(request["epochs"]))
    if request.get("vectors"):
        training.save(request["vectors"])
    return {"seconds": seconds, "quality": {"epochs": training.epoch}}


if __name__ == "__main__":
    serve(job)
