"""Finished multi-task rankers on disk: weights as safetensors, facts as JSON, one id map for each field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from embeddings.tables.collection import TableCollection
from recsys.rankers.checkpoint import Layout, read_fields, tower_of, write_fields
from recsys.rankers.gates.build import GateSpec
from recsys.rankers.gates.dense_to_sparse import Annealing
from recsys.rankers.gates.permuted import PermutationSearch
from recsys.rankers.multi_task import MultiTaskRanker, MultiTaskSpec, Task, build_multi_task

_LAYOUT = Layout("recsys-multi-task", 2)


def save_multi_task(ranker: MultiTaskRanker, directory: Path) -> None:
    """Write ``ranker.safetensors``, ``ranker.json`` and ``map-<place>.safetensors``; ``directory`` appears whole.

    Optimizer state is not part of a finished ranker.
    """
    write_fields(ranker, {"spec": dataclasses.asdict(ranker.spec)}, _LAYOUT, directory)


def load_multi_task(directory: Path) -> MultiTaskRanker:
    """Read what :func:`save_multi_task` wrote, for scoring, on the torch back end whatever it was trained on.

    Raises:
        CheckpointError: A file is missing, truncated, foreign, or of another version; the message names it.
    """

    def build(facts: dict[str, Any], tables: TableCollection) -> MultiTaskRanker:
        return build_multi_task(_spec(facts["spec"]), tables, seed=0)

    return read_fields(directory, _LAYOUT, build)


def _spec(facts: dict[str, Any]) -> MultiTaskSpec:
    gate = facts["gate"]
    annealing, search = gate["annealing"], gate["search"]
    pairs = {name: tuple(search[name]) for name in ("tau", "iterations")} if search else {}
    nested = {
        "annealing": Annealing(**annealing | {"tau": tuple(annealing["tau"])}),
        "search": PermutationSearch(**search | pairs) if search else None,
    }
    built = {
        "tasks": tuple(Task(**task) for task in facts["tasks"]),
        "gate": GateSpec(**gate | nested),
        "expert": tower_of(facts["expert"]),
        "head": tower_of(facts["head"]),
    }
    return MultiTaskSpec(**facts | built)
