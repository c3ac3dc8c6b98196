"""Finished models on disk: weights as safetensors, facts as JSON, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from embeddings import atomic
from embeddings.id_map import IdMap
from embeddings.tables.table import Table
from recsys import tower_checkpoint
from recsys.bipartite import BipartiteGraph
from recsys.checkpoint_backbones import Backbone, backbone_contents, load_backbone
from recsys.generative_checkpoint import rpg_contents, rpg_model, tiger_contents, tiger_model
from recsys.models.ease import Ease
from recsys.models.ensemble import StandardisedEnsemble, VectorEnsemble
from recsys.models.graph_filter import GraphFilter
from recsys.models.graph_model import GraphModel
from recsys.models.ials import Ials
from recsys.models.item_knn import ItemKnn
from recsys.models.kgat import Kgat
from recsys.models.lightgcn import LightGcn
from recsys.models.mf import MatrixFactorization, TwoTables
from recsys.models.neumf import NeuMf
from recsys.models.ngcf import Ngcf
from recsys.models.popularity import Popularity
from recsys.models.rpg import Rpg
from recsys.models.sequence_model import SequenceModel
from recsys.models.simplex import SimpleX
from recsys.models.slim import Slim
from recsys.models.tiger import Tiger
from recsys.models.two_tower import TwoTower
from recsys.retriever import Retriever, VectorRetriever
from recsys.self_supervision import SelfSupervision
from recsys.sequence_checkpoint import sequence_contents, sequence_model
from recsys.table_tensors import read_table, table_tensors
from recsys.training_state import CheckpointError

Closed = Popularity | ItemKnn | Ials | Slim | Ease | GraphFilter
"""Models that are their ``state()``."""
Reader = SequenceModel | Tiger | Rpg
"""Models that read the order of histories."""
Sum = StandardisedEnsemble | VectorEnsemble
Model = MatrixFactorization | Backbone | TwoTower | Reader | Closed | Sum

CLOSED: dict[str, type[Closed]] = {
    "popularity": Popularity,
    "item_knn": ItemKnn,
    "ials": Ials,
    "slim": Slim,
    "ease": Ease,
    "graph_filter": GraphFilter,
}

PARTS = ("first", "second")
"""Directories of the members of an ensemble."""
_FORMAT = "recsys-model"
_VERSION = 1


def save_model(model: Model, directory: Path) -> None:
    """Write ``model.safetensors``, ``model.json`` and, for tables, the two id maps; ``directory`` appears whole.

    A saved model that is already there is replaced. Optimizer state is not part of a finished model.

    Raises:
        CheckpointError: ``directory`` holds something else than a saved model.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / "model.json").exists():
        raise CheckpointError(f"{directory} exists and is not a saved model; choose an empty or new directory")
    kind, tensors = _contents(model)
    facts = {"format": _FORMAT, "version": _VERSION, **kind}
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic.atomic_directory(directory) as temporary:
        if isinstance(model, TwoTables):
            model.users.id_map.save(temporary / "user_map.safetensors")
            model.items.id_map.save(temporary / "item_map.safetensors")
        if isinstance(model, TwoTower):
            for name, table in tower_checkpoint.tables(model).items():
                table.id_map.save(temporary / f"{name}.map.safetensors")
        if isinstance(model, SequenceModel) and isinstance(model.items, Table):
            model.items.id_map.save(temporary / "item_map.safetensors")
        if isinstance(model, Sum):
            for part, member in zip(PARTS, model.members, strict=True):
                save_model(cast("Model", member), temporary / part)
        atomic.write_bytes(temporary / "model.safetensors", safetensors.torch.save(whole))
        atomic.write_bytes(temporary / "model.json", (json.dumps(facts, indent=1) + "\n").encode())


def load_model(directory: Path) -> Model:  # noqa: PLR0911 - one for each kind of model
    """Read what :func:`save_model` wrote.

    Raises:
        CheckpointError: A file is missing, truncated, foreign, or of another version; the message names it.
    """
    facts = _facts(directory / "model.json")
    path = directory / "model.safetensors"
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        match facts["model"]:
            case "mf":
                return MatrixFactorization(*_tables(directory, tensors), similarity=facts["similarity"])
            case name if name in CLOSED:
                return CLOSED[name].from_state(tensors)
            case "sequence" | "tiger" | "rpg":
                return _reader(directory, facts, tensors)
            case "ensemble":
                parts = [directory / part for part in PARTS]
                return load_ensemble(parts, facts["weight"], standardised=facts.get("standardised", False))
            case "lightgcn" | "ngcf":
                return _graph_model(facts, tensors, _tables(directory, tensors))
            case "kgat" | "simplex" | "neumf":
                return load_backbone(facts, tensors, _tables(directory, tensors))
            case "two_tower":
                return tower_checkpoint.restore(
                    facts, tensors, lambda name: _table(directory / f"{name}.map.safetensors", tensors, name)
                )
            case other:
                raise CheckpointError(f"{directory / 'model.json'} names the unknown model {other!r}; train it again")
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged, or files beside it are missing: {error}; train it again") from error


def load_vectors(directory: Path) -> VectorRetriever:
    """As :func:`load_model`, for a model whose scores are inner products.

    Raises:
        CheckpointError: Also for another model.
    """
    model = load_model(directory)
    if not isinstance(model, VectorRetriever):
        raise CheckpointError(f"{directory} must be a model with vectors, got {type(model).__name__}; name another one")
    return model


def load_ensemble(parts: Sequence[Path], weight: float, *, standardised: bool) -> Sum:
    """Two saved models as one; without vectors of its own a member can only be standardised.

    Raises:
        CheckpointError: As :func:`load_vectors`.
    """
    if standardised:
        first, second = (cast("Retriever", load_model(part)) for part in parts)
        return StandardisedEnsemble(first, second, weight)
    one, other = (load_vectors(part) for part in parts)
    return VectorEnsemble(one, other, weight)


def _contents(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:  # noqa: PLR0911 - likewise
    match model:
        case LightGcn() | Ngcf():
            mixers = {"mixers": model.mixers} if isinstance(model, Ngcf) else {}
            return _graph_facts(model), {**_graph_tensors(model), **mixers}
        case Kgat() | SimpleX() | NeuMf():
            return backbone_contents(model)
        case SequenceModel() | Tiger() | Rpg():
            return _reader_contents(model)
        case StandardisedEnsemble() | VectorEnsemble():
            standardised = isinstance(model, StandardisedEnsemble)
            return {"model": "ensemble", "weight": model.weight, "standardised": standardised}, {}
        case MatrixFactorization():
            return {"model": "mf", "similarity": model.similarity}, _table_tensors(model)
        case TwoTower():
            facts, tensors = tower_checkpoint.contents(model)
            return {"model": "two_tower", **facts}, tensors
        case _:
            return {"model": next(name for name, kind in CLOSED.items() if isinstance(model, kind))}, model.state()


def _reader_contents(model: Reader) -> tuple[dict[str, Any], dict[str, Tensor]]:
    match model:
        case Tiger():
            return tiger_contents(model)
        case Rpg():
            return rpg_contents(model)
        case SequenceModel():
            return sequence_contents(model)


def _reader(directory: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Reader:
    if facts["model"] == "tiger":
        return tiger_model(facts, tensors)
    if facts["model"] == "rpg":
        return rpg_model(facts, tensors)
    return sequence_model(facts, tensors, lambda: _table(directory / "item_map.safetensors", tensors, "items"))


def _graph_model(facts: dict[str, Any], tensors: dict[str, Tensor], tables: tuple[Any, Any]) -> LightGcn | Ngcf:
    model: LightGcn | Ngcf
    if facts["model"] == "ngcf":
        model = Ngcf(*tables, **_graph_parameters(facts), dropout=0.0, generator=np.random.default_rng(0))
        model.mixers.data = tensors["mixers"]
    else:
        served = facts.get("norm_exponent", 0.0)  # which older files lack
        model = LightGcn(*tables, **_graph_parameters(facts), norm_exponent=served)
    model.set_graph(BipartiteGraph.from_interactions(tensors))
    return model


def _graph_facts(model: GraphModel) -> dict[str, Any]:
    name = "ngcf" if isinstance(model, Ngcf) else "lightgcn"
    chosen = {key: getattr(model, key) for key in ("similarity", "norm_exponent", "layers", "with_ego")}
    return {"model": name} | chosen


def _graph_tensors(model: GraphModel) -> dict[str, Tensor]:
    return {**_table_tensors(model), **model.graph.interactions()}


def _graph_parameters(facts: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a graph model for scoring; whether layer 0 counts is all that is left of a self-supervised term."""
    ssl = None if facts["with_ego"] else SelfSupervision("simgcl")
    return {"similarity": facts["similarity"], "layers": facts["layers"], "ssl": ssl}


def _table_tensors(model: MatrixFactorization) -> dict[str, Tensor]:
    """The rows of each table: whole, or those entries of a sparse one that are stored."""
    return table_tensors("users", model.users) | table_tensors("items", model.items)


def _tables(directory: Path, tensors: dict[str, Tensor]) -> tuple[Any, Any]:
    users, items = directory / "user_map.safetensors", directory / "item_map.safetensors"
    return _table(users, tensors, "users"), _table(items, tensors, "items")


def _table(map_path: Path, tensors: dict[str, Tensor], side: str) -> Any:
    """What :func:`recsys.table_tensors.table_tensors` wrote of a table."""
    try:
        id_map = IdMap.load(map_path)
    except ValueError as error:
        raise CheckpointError(f"{error}, or train the model again") from error
    try:
        return read_table(side, tensors, id_map)
    except ValueError as error:
        raise CheckpointError(f"the {side} beside {map_path} do not fit it: {error}; train it again") from error


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {path.parent} must be a saved model") from error
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise CheckpointError(f"{path} does not describe a model of this program; it must say format: {_FORMAT}")
    if facts.get("version") != _VERSION:
        raise CheckpointError(f"{path} has version {facts.get('version')}, this program reads {_VERSION}")
    return facts
