"""Finished rankers on disk: weights as safetensors, facts as JSON, one id map for each field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from embeddings import atomic
from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, TableCollection, build_collection
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.dcn_v2 import Cross
from recsys.rankers.din import Interest
from recsys.rankers.final_mlp import Streams
from recsys.rankers.ranker import FieldModel, Ranker, Tower
from recsys.training_state import CheckpointError

M = TypeVar("M", bound=FieldModel)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What ``ranker.json`` says first: whose files these are, and of which version."""

    format: str
    version: int


_LAYOUT = Layout("recsys-ranker", 2)


def save_ranker(ranker: Ranker, spec: RankerSpec, directory: Path) -> None:
    """Write ``ranker.safetensors``, ``ranker.json`` and ``map-<place>.safetensors``; ``directory`` appears whole.

    Optimizer state is not part of a finished ranker.
    """
    write_fields(ranker, {"spec": dataclasses.asdict(spec), "num_dense": ranker.num_dense}, _LAYOUT, directory)


def write_fields(model: FieldModel, facts: dict[str, Any], layout: Layout, directory: Path) -> None:
    """Write a model of fields: its layers, its tables without optimizer state, its id maps and ``facts``."""
    tensors = {
        f"layers.{name}": tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("tables.")
    }
    tensors |= {
        f"table.{place}": model.tables.weight(field.name).contiguous()
        for place, field in enumerate(model.tables.fields)
    }
    fields = [{"name": field.name, "dim": field.dim} for field in model.tables.fields]
    facts = dataclasses.asdict(layout) | facts | {"fields": fields}
    with atomic.atomic_directory(directory) as temporary:
        for place, field in enumerate(model.tables.fields):
            field.id_map.save(temporary / f"map-{place}.safetensors")
        atomic.write_bytes(temporary / "ranker.safetensors", safetensors.torch.save(tensors))
        atomic.write_bytes(temporary / "ranker.json", (json.dumps(facts, indent=1) + "\n").encode())


def load_ranker(directory: Path) -> Ranker:
    """Read what :func:`save_ranker` wrote, for scoring, on the torch back end whatever it was trained on.

    Raises:
        CheckpointError: A file is missing, truncated, foreign, or of another version; the message names it.
    """

    def build(facts: dict[str, Any], tables: TableCollection) -> Ranker:
        return build_ranker(_spec(facts["spec"]), tables, facts["num_dense"], seed=0)

    return read_fields(directory, _LAYOUT, build)


def read_fields(directory: Path, layout: Layout, build: Callable[[dict[str, Any], TableCollection], M]) -> M:
    """Read what :func:`write_fields` wrote, in evaluation mode.

    Args:
        directory: where it lies.
        layout: what it must say to be.
        build: makes the model of the facts over empty tables, whose layers are then filled.

    Raises:
        CheckpointError: A file is missing, truncated, foreign, or of another version; the message names it.
    """
    path = directory / "ranker.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        if (facts.get("format"), facts.get("version")) != (layout.format, layout.version):
            required = f"format {layout.format}, version {layout.version}"
            raise CheckpointError(f"{path} must say {required}; train the ranker again")
        tensors = safetensors.torch.load((directory / "ranker.safetensors").read_bytes())
        fields = [
            Field(field["name"], IdMap.load(directory / f"map-{place}.safetensors"), field["dim"])
            for place, field in enumerate(facts["fields"])
        ]
        tables = build_collection(
            fields, optimizer=OptimizerSpec("sgd"), init_std=0.0, generator=np.random.default_rng(0)
        )
        model = build(facts, tables)
        for place, field in enumerate(fields):
            tables.weight(field.name).copy_(tensors.pop(f"table.{place}"))
        missing, unexpected = model.load_state_dict(
            {name.removeprefix("layers."): tensor for name, tensor in tensors.items()}, strict=False
        )
        wrong = [name for name in [*missing, *unexpected] if not name.startswith("tables.")]
        if wrong:
            raise CheckpointError(f"{directory} does not fit its description at {wrong[0]}; train the ranker again")
    except CheckpointError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory} is not a whole saved ranker: {error}; train it again") from error
    return model.eval()


def _spec(facts: dict[str, Any]) -> RankerSpec:
    streams = facts["streams"]
    gates = streams["gates"]
    return RankerSpec(
        facts["name"],
        tower_of(facts["tower"]),
        Cross(**facts["cross"]),
        tuple(facts["bottom"]),
        Streams(
            tower_of(streams["second"]),
            streams["heads"],
            None if gates is None else (tuple(gates[0]), tuple(gates[1])),
            tuple(streams["gate_hidden"]),
        ),
        Interest(facts["interest"]["item"], tuple(facts["interest"]["hidden"])),
    )


def tower_of(facts: dict[str, Any]) -> Tower:
    """A tower from JSON."""
    return Tower(**facts | {"hidden": tuple(facts["hidden"])})
