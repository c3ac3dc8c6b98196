"""A two-tower model as tensors and facts: towers, features and the histories in which users are served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.tables import Table
from embeddings.tables.sparse_weights import SparseWeights
from recsys.features import Features
from recsys.histories import Histories
from recsys.mlp import Mlp
from recsys.models.tower import Tower
from recsys.models.two_tower import TwoTower
from recsys.table_tensors import layer_tensors, read_layers, table_tensors

SIDES = ("users", "items")


def contents(model: TwoTower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a trained model, without optimizer state; the id maps of :func:`tables` are apart."""
    facts: dict[str, Any] = {"history_length": model.history_length, "temperature": float(model.temperature.detach())}
    histories = model.histories
    tensors = {"histories.items": _tensor(histories.items), "histories.offsets": _tensor(histories.offsets)}
    for side, tower in zip(SIDES, (model.users, model.items), strict=True):
        facts[side] = {
            "rows": tower.features.num_rows,
            "features": tower.features.facts(),
            "widths": list(tower.network.widths),
            "tables": len(tower.tables),
        }
        tensors |= {f"{side}.features.{name}": _tensor(array) for name, array in tower.features.arrays().items()}
        tensors |= {f"{side}.network.{name}": part for name, part in tower.network.dense_parameters().items()}
        if isinstance(tower.network.weights, SparseWeights):
            tensors |= layer_tensors(f"{side}.network.weights", tower.network.weights)
    for name, table in tables(model).items():
        tensors |= table_tensors(name, table)
    return facts, tensors


def tables(model: TwoTower) -> dict[str, Table]:
    """The tables of both towers by the name that their files have: ``users.table.0``, ..."""
    towers = zip(SIDES, (model.users, model.items), strict=True)
    return {f"{side}.table.{place}": table for side, tower in towers for place, table in enumerate(tower.tables)}


def restore(facts: dict[str, Any], tensors: dict[str, Tensor], table: Callable[[str], Table]) -> TwoTower:
    """The model that :func:`contents` describes.

    Args:
        facts: of the model.
        tensors: of the model.
        table: gives the table of a name.

    Raises:
        KeyError: Something is missing.
    """
    towers = []
    for side in SIDES:
        found = facts[side]
        arrays = {name: part.numpy() for name, part in _below(f"{side}.features.", tensors).items()}
        features = Features.from_arrays(found["rows"], found["features"], arrays)
        network = _network(f"{side}.network.", found["widths"], tensors)
        own = [table(f"{side}.table.{place}") for place in range(found["tables"])]
        towers.append(Tower(features, own, network))
    users, items = towers
    model = TwoTower(users, items, history_length=facts["history_length"], temperature=facts["temperature"])
    places, offsets = tensors["histories.items"].numpy(), tensors["histories.offsets"].numpy()
    model.use_histories(Histories(places, offsets, model.num_items))
    return model


def _network(prefix: str, widths: Sequence[int], tensors: dict[str, Tensor]) -> Mlp:
    network = Mlp(widths, np.random.default_rng(0))
    if f"{prefix}weights.0.values" in tensors:
        network.use_sparse(read_layers(f"{prefix}weights", tensors, widths[1:]))
    else:
        network.weights.load_state_dict(_below(f"{prefix}weights.", tensors))
    network.biases.load_state_dict(_below(f"{prefix}biases.", tensors))
    return network


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
