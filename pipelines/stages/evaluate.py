"""The evaluation stage: rank the whole catalogue for the test users, once for each trained variant."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from pipelines.atomic import finite, write_json
from pipelines.cache import Cache, build_seconds
from pipelines.config import Evaluate
from pipelines.dataset import Dataset
from pipelines.stages.generative import device
from pipelines.stages.train import Trained
from recsys.checkpoint import Model, load_model
from recsys.evaluator import Evaluation, evaluate
from recsys.models.tiger import Tiger

VERSION = 5


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What the evaluation of a variant found, and how long it took."""

    evaluation: Evaluation
    seconds: float


def evaluate_stage(cache: Cache, dataset: Dataset, trained: Trained, config: Evaluate, seed: int) -> Evaluated:
    """Evaluate a trained variant on the test split, or find it evaluated."""
    key = {
        "version": VERSION,
        "trained": trained.key,
        "dataset": dataset.content_hash,
        "evaluate": config.model_dump(mode="json"),
        "seed": seed,
    }

    def build(directory: Path) -> None:
        train = dataset.matrix("train")
        found = evaluate(
            _served(trained),
            relevant=dataset.matrix("test"),
            seen=dataset.matrix("train", "valid"),
            train=train,
            ks=config.k,
            max_k=config.max_k,
            bootstrap=config.bootstrap,
            seed=seed,
            auc=config.auc,
            unmasked=config.unmasked,
        )
        arrays = {"users": found.users, "top_items": found.top_items}
        arrays |= {f"per_user.{name}": values for name, values in found.per_user.items()}
        whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}  # safetensors ignores strides
        save_file(whole, directory / "users.safetensors")
        write_json(directory / "summary.json", finite(found.summary()))

    entry = cache.stage("evaluate", key, build)
    return Evaluated(_read(entry), build_seconds(entry))


def _served(trained: Trained) -> Model:
    """The model where it was trained, as far as this machine has that device."""
    model = load_model(trained.entry / "checkpoint")
    return model.to(device(trained.key["model"]["device"])) if isinstance(model, Tiger) else model


def _read(entry: Path) -> Evaluation:
    arrays = load_file(entry / "users.safetensors")
    summary: dict[str, Any] = json.loads((entry / "summary.json").read_bytes())
    per_user = {
        name.removeprefix("per_user."): values for name, values in arrays.items() if name.startswith("per_user.")
    }
    return Evaluation(
        users=arrays["users"],
        per_user=per_user,
        metrics={name: _number(value) for name, value in summary["metrics"].items()},
        ci95={name: (_number(low), _number(high)) for name, (low, high) in summary["ci95"].items()},
        curves=summary["curves"],
        slices=summary["slices"],
        heat=summary["heat"],
        top_items=arrays["top_items"],
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
