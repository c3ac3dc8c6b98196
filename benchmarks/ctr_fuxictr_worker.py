"""DCN-V2 made of FuxiCTR's layers, in its trainer and its loader. Argument: a directory of ``ctr_job.write_splits``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn

from benchmarks import THREADS
from benchmarks.worker import serve

NO_EVALUATION = 1 << 40
"""Steps between validations where epochs alone are timed."""


class DcnV2(BaseModel):
    """The parallel structure: cross layers beside a tower, joined by a linear layer."""

    def __init__(self, features: FeatureMap, job: dict[str, Any], directory: str) -> None:
        super().__init__(
            features,
            model_root=directory,
            metrics=["AUC", "logloss"],
            verbose=0,
            embedding_regularizer=job["weight_decay"] or None,
        )
        width = features.num_fields * job["dim"]
        self.embedding = FeatureEmbedding(features, job["dim"])
        self.cross = CrossNetV2(width, job["layers"])
        self.tower = MLP_Block(width, job["hidden"], dropout_rates=job["dropout"], batch_norm=job["batch_norm"])
        self.head = nn.Linear(width + job["hidden"][-1], 1)
        self.compile("adam", "binary_crossentropy", job["lr"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities [B, 1], as FuxiCTR's trainer wants them."""
        flat = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        whole = torch.cat([self.cross(flat), self.tower(flat)], dim=-1)
        return {"y_pred": self.output_activation(self.head(whole))}


class _Training:
    """A model and its loaders, kept between requests."""

    def __init__(self, data: Path, job: dict[str, Any]) -> None:
        seed_everything(job["seed"])
        self.directory = tempfile.TemporaryDirectory()
        (Path(self.directory.name) / "events").mkdir()
        features = FeatureMap("events", str(data))
        features.load(str(data / "feature_map.json"), {"embedding_dim": job["dim"]})
        self.model = DcnV2(features, job, self.directory.name)
        self.model._max_gradient_norm, self.model._eval_steps = 10.0, NO_EVALUATION
        self.model._total_steps, self.model._stop_training = 0, False
        paths = {f"{split}_data": str(data / f"{split}.npz") for split in ("train", "valid", "test")}
        self.train, self.valid, self.test = RankDataLoader(features, batch_size=job["batch_size"], **paths)
        self.batches: list[dict[str, Tensor]] = []

    def epochs(self, count: int) -> float:
        """Seconds of ``count`` passes of its loop over its loader."""
        start = time.perf_counter()
        for _ in range(count):
            self.model.train_epoch(self.train)
        return time.perf_counter() - start

    def steps(self, count: int) -> float:
        """Seconds of ``count`` training steps on batches that are ready."""
        if not self.batches:
            self.batches = list(self.train)
        self.model.train()
        start = time.perf_counter()
        for step in range(count):
            self.model.train_step(self.batches[step % len(self.batches)]).item()
        return time.perf_counter() - start

    def fit(self, epochs: int) -> float:
        """Seconds of a whole training with early stopping on validation; the best weights are loaded."""
        self.model._eval_steps = None
        start = time.perf_counter()
        self.model.fit(self.train, epochs=epochs, validation_data=self.valid)
        return time.perf_counter() - start


_TRAININGS: dict[str, _Training] = {}


def job(request: dict[str, Any]) -> dict[str, Any]:
    """Run ``epochs`` or ``steps`` of the job, ``fit`` it, ``evaluate`` it, or save what it gives test in ``out``."""
    key = str(sorted(request["job"].items()))
    if key not in _TRAININGS:
        torch.set_num_threads(THREADS)
        _TRAININGS.clear()
        _TRAININGS[key] = _Training(Path(sys.argv[1]), request["job"])
    training, quality = _TRAININGS[key], {}
    match request["command"]:
        case "epochs":
            seconds = training.epochs(request["count"])
        case "steps":
            seconds = training.steps(request["count"])
        case "fit":
            seconds = training.fit(request["count"])
            quality["epochs"] = training.model._epoch_index + 1
        case "save":
            start = time.perf_counter()
            np.save(request["out"], training.model.predict(training.test))
            seconds = time.perf_counter() - start
        case _:
            start = time.perf_counter()
            for split, loader in (("valid", training.valid), ("test", training.test)):
                found = training.model.evaluate(loader)
                quality |= {f"{split}/auc": float(found["AUC"]), f"{split}/log_loss": float(found["logloss"])}
            seconds = time.perf_counter() - start
    return {"seconds": seconds, "quality": quality}


if __name__ == "__main__":
    serve(job)
