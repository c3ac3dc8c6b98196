"""What the report says of a training, the same for every model with epochs."""

from __future__ import annotations

import dataclasses
from typing import Any

from embeddings.tables.spec import TableBytes
from recsys.settings import FitResult


def training_facts(
    result: FitResult, *, rows: int, tables: TableBytes, layers: TableBytes, window: int = 0
) -> dict[str, Any]:
    """JSON-able: sizes in bytes, epochs, seconds and the highest memory.

    Args:
        result: how the training went.
        rows: of all tables.
        tables: bytes of their weights, of the optimizer's state in training, and of the maps from ids to rows.
        layers: likewise of all that is trained and no table.
        window: bytes of the gradients that sparse tables kept for an update, at most.
    """
    return {
        "table_rows": rows,
        "table_bytes": tables.weights,
        "optimizer_bytes": tables.optimizer,
        "window_bytes": window,
        "map_bytes": tables.map,
        "layer_bytes": layers.weights,
        "layer_optimizer_bytes": layers.optimizer,
        "epochs": result.best_epoch,
        "epochs_run": result.epochs_run,
        "peak_rss_mib": max((record.rss_mib for record in result.history), default=0.0),
        "seconds": result.seconds,
    }


def records(result: FitResult) -> list[dict[str, Any]]:
    """The epochs of a training as JSON-able mappings."""
    return [dataclasses.asdict(record) for record in result.history]
