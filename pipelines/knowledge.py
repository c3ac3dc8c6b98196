"""The knowledge graph of a dataset on disk."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from pipelines.dataset import Dataset
from pipelines.errors import DataError
from recsys.knowledge_graph import KnowledgeGraph

TRIPLES, ENTITIES, RELATIONS = "kg.parquet", "kg_entities.parquet", "kg_relations.parquet"


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """Facts about the items of a dataset.

    Attributes:
        graph: over the items and the other entities.
        entity_names: of the entities that are not items, in order.
        relation_names: of the relations, in order.
    """

    graph: KnowledgeGraph
    entity_names: list[str]
    relation_names: list[str]


def open_knowledge(dataset: Dataset) -> Knowledge:
    """The knowledge graph that was ingested with a dataset.

    Raises:
        DataError: There is none, or a file is damaged.
    """
    if not dataset.manifest.knowledge_graph:
        raise DataError(
            f"dataset {dataset.manifest.name} has no knowledge graph; name its files in dataset.knowledge_graph, as"
            " configs/experiments/kgat_ml100k.yaml does"
        )
    try:
        triples, entities, relations = (
            pl.read_parquet(dataset.path / name, glob=False) for name in (TRIPLES, ENTITIES, RELATIONS)
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot read the knowledge graph in {dataset.path} ({error}); ingest again") from error
    sizes = (dataset.num_items, dataset.num_items + entities.height, relations.height)
    graph = KnowledgeGraph(*sizes, triples.to_numpy().astype(np.int64).reshape(-1, 3))
    return Knowledge(graph, entities["name"].to_list(), relations["name"].to_list())
