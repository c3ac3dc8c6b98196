"""Tensors and facts of the models whose scores need more than two tables: KGAT, SimpleX, NeuMF."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.tables import Table
from recsys.bipartite import BipartiteGraph
from recsys.knowledge_graph import KnowledgeGraph
from recsys.models.kgat import Kgat
from recsys.models.neumf import NeuMf
from recsys.models.simplex import SimpleX
from recsys.models.transr import TransR
from recsys.table_tensors import layer_tensors, read_layers, read_table, table_tensors

Backbone = Kgat | SimpleX | NeuMf


def backbone_contents(model: Backbone) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``model.json`` says of a model, and its tensors, those of the tables among them."""
    tensors = table_tensors("users", model.users) | table_tensors("items", model.items)
    match model:
        case Kgat():
            learned = model.knowledge
            tensors |= {"translations": learned.translations, "projections": learned.projections}
            tensors |= table_tensors("entities", learned.entities)
            tensors |= {**learned.graph.tensors(), **model.graph.interactions()}
            facts = {"model": "kgat", "similarity": model.similarity}
            return facts, tensors | _layers("mixers", model.mixers)
        case SimpleX():
            facts = {name: getattr(model, name) for name in ("similarity", "user_weight", "pooling")}
            tensors |= {"mixers": model.mixers, "queries": model.queries}
            return {"model": "simplex", **facts}, tensors | BipartiteGraph.of(model.history).interactions()
        case NeuMf():
            tensors |= _layers("matrices", model.matrices) | _layers("biases", model.biases)
            tensors |= {} if model.sparse is None else layer_tensors("sparse", model.sparse)
            return {"model": "neumf", "widths": model.widths}, tensors


def load_backbone(facts: dict[str, Any], tensors: dict[str, Tensor], tables: tuple[Table, Table]) -> Backbone:
    """The model whose :func:`backbone_contents` these are.

    Raises:
        KeyError: A fact or a tensor is missing.
    """
    nothing = np.random.default_rng(0)
    match facts["model"]:
        case "kgat":
            kgat = _kgat(facts, tensors, tables)
            kgat.set_graph(BipartiteGraph.from_interactions(tensors))
            return kgat
        case "simplex":
            chosen = {name: facts[name] for name in ("similarity", "user_weight", "pooling")}
            simplex = SimpleX(*tables, **chosen, generator=nothing)
            simplex.mixers.data, simplex.queries.data = tensors["mixers"], tensors["queries"]
            simplex.use_graph(BipartiteGraph.from_interactions(tensors).matrix())
            return simplex
        case _:
            neumf = NeuMf(*tables, widths=facts["widths"], generator=nothing)
            if "sparse.0.values" in tensors:
                neumf.use_sparse(read_layers("sparse", tensors, neumf.widths))
            for name, parts in (("matrices", neumf.matrices), ("biases", neumf.biases)):
                for layer, part in enumerate(parts):
                    part.data = tensors[f"{name}.{layer}"]
            return neumf


def _kgat(facts: dict[str, Any], tensors: dict[str, Tensor], tables: tuple[Table, Table]) -> Kgat:
    nothing = np.random.default_rng(0)
    entities = read_table("entities", tensors, IdMap.identity(len(tensors["entities"]) - 1))
    learned = TransR(entities, KnowledgeGraph.from_tensors(tensors), generator=nothing)
    learned.translations.data, learned.projections.data = tensors["translations"], tensors["projections"]
    mixers = [tensors[f"mixers.{layer}"] for layer in range(sum(name.startswith("mixers.") for name in tensors))]
    widths = [mixer.shape[2] for mixer in mixers]
    model = Kgat(*tables, learned, widths=widths, similarity=facts["similarity"], dropout=0.0, generator=nothing)
    for own, saved in zip(model.mixers, mixers, strict=True):
        own.data = saved
    return model


def _layers(name: str, parameters: Any) -> dict[str, Tensor]:
    return {f"{name}.{layer}": part for layer, part in enumerate(parameters)}
