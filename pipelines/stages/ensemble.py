"""The sum of two trained variants, for the training stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy.sparse import csr_array

from pipelines.config import Train
from pipelines.config_ensemble import Ensemble
from pipelines.dataset import Dataset
from pipelines.stages.sequence import sequence_data
from recsys.checkpoint import load_ensemble
from recsys.evaluator import quick_metrics_by_weight
from recsys.models.ensemble import StandardisedEnsemble, VectorEnsemble
from recsys.models.sequence_model import SequenceModel


def combine(
    config: Ensemble, settings: Train, members: Sequence[tuple[Path, dict[str, Any]]], dataset: Dataset,
    selects: tuple[csr_array, csr_array], on_users: Callable[[int, int], None],
) -> tuple[StandardisedEnsemble | VectorEnsemble, dict[str, Any]]:  # fmt: skip
    """Load two trained models and weigh them.

    Args:
        config: the weight, or the weights to try.
        settings: of training; ``selection`` chooses among the weights, the first of the best.
        members: the saved model and the facts of each.
        dataset: what they were trained on.
        selects: what is seen, and what is ranked, to choose by.
        on_users: called with the users that are ranked at every weight, and all of them.

    Returns:
        The model, and facts for the report: the members' sizes and what the search found.
    """
    combined = load_ensemble([path for path, _ in members], config.weight, standardised=config.standardise)
    sizes = ("table_rows", "table_bytes", "optimizer_bytes", "map_bytes", "layer_bytes", "layer_optimizer_bytes")
    facts: dict[str, Any] = {name: sum(own.get(name, 0) for _, own in members) for name in sizes}
    if not config.grid:
        return combined, facts
    readers = [model for model in combined.members if isinstance(model, SequenceModel)]
    data = sequence_data(dataset, settings) if readers else None
    for reader in readers:
        assert data is not None
        reader.histories = data.train
    weights = [point.weight for point in config.points()]
    values = quick_metrics_by_weight(combined, weights, selects[1], selects[0], [settings.selection], on_users)
    tried: list[dict[str, Any]] = [
        {"parameters": {"weight": weight}, **own} for weight, own in zip(weights, values, strict=True)
    ]
    for reader in readers:
        assert data is not None
        reader.histories = data.known
    best = max(tried, key=lambda found: found[settings.selection])
    facts["chosen"] = {"metric": settings.selection, "on": settings.selected_on, **best, "tried": tried}
    combined.weight = best["parameters"]["weight"]
    return combined, facts
