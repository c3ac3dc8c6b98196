"""A knowledge graph beside the interactions: read, linked to the items, made dense."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.config_knowledge import KnowledgeFiles, Names
from pipelines.errors import DataError, did_you_mean
from pipelines.ingest.check import BadRows
from pipelines.ingest.entities import read_whole
from pipelines.ingest.source import Source
from pipelines.knowledge import ENTITIES, RELATIONS, TRIPLES
from recsys.knowledge_graph import KnowledgeGraph


def write_knowledge(
    directory: Path, settings: KnowledgeFiles, items: pl.DataFrame, source: Source
) -> tuple[dict[str, Any], str]:
    """Write the three files of :class:`pipelines.knowledge.Knowledge` into ``directory``.

    Args:
        directory: of the dataset.
        settings: the files and their columns.
        items: row i has the ``raw_id`` of item i.
        source: directory of the files.

    Returns:
        Facts for the manifest, and a hash of all that a model may see.

    Raises:
        DataError: A file or a column is missing, a cell is empty, an item or an entity is linked twice, no item is
            linked, or a triple names an entity or a relation that its file does not have.
    """
    triples_at, links_at = settings.triples, settings.links
    triples = _read(source, triples_at.source, "triples", [triples_at.head, triples_at.relation, triples_at.tail])
    links = _read(source, links_at.source, "links", [links_at.item, links_at.entity])
    for column in (links_at.item, links_at.entity):
        _once(links_at.source, links, column)
    links = links.select(pl.col(links_at.item).alias("raw_id"), pl.col(links_at.entity).alias("entity"))
    linked = items.select("raw_id").with_row_index("item").join(links, on="raw_id", maintain_order="left")
    if not linked.height:
        raise DataError(
            f"{links_at.source}, column {links_at.item!r}: no id is that of an item with interactions; the file's first"
            f" are {_first(links['raw_id'])}, the interactions' first are {_first(items['raw_id'])};"
            " set knowledge_graph.links.item to the column of the same ids"
        )
    entity_of = dict(zip(linked["entity"].to_list(), linked["item"].to_list(), strict=True))
    mentioned = pl.concat([triples[triples_at.head], triples[triples_at.tail]]).unique().sort()
    others = [raw for raw in mentioned.to_list() if raw not in entity_of]
    place = entity_of | {raw: items.height + index for index, raw in enumerate(others)}
    relation_ids = triples[triples_at.relation].unique().sort().to_list()
    relation_names = _names(source, settings.relations, relation_ids, "relation", triples_at.source)
    entity_names = _names(source, settings.entities, mentioned.to_list(), "entity", triples_at.source)
    places = (place, {raw: index for index, raw in enumerate(relation_ids)}, place)
    dense = triples.select(
        pl.col(name).replace_strict(where, return_dtype=pl.Int64)
        for name, where in zip(triples.columns, places, strict=True)
    ).to_numpy()
    distinct = np.unique(dense, axis=0)
    whole = KnowledgeGraph(items.height, items.height + len(others), len(relation_ids), distinct)
    graph, old = whole.core(settings.entity_core)
    kept = [others[entity - items.height] for entity in old[items.height :].tolist()]
    frames = {
        TRIPLES: pl.DataFrame(graph.triples.astype(np.int32), schema=["head", "relation", "tail"], orient="row"),
        ENTITIES: pl.DataFrame({"raw_id": kept, "name": [entity_names[raw] for raw in kept]}, schema=_NAMED),
        RELATIONS: pl.DataFrame(
            {"raw_id": relation_ids, "name": [relation_names[raw] for raw in relation_ids]}, schema=_NAMED
        ),
    }
    digest = hashlib.blake2b(digest_size=32)
    for name, frame in frames.items():
        frame.write_parquet(directory / name, compression="zstd")
        digest.update(frame.write_ndjson().encode())
    facts = {
        "triples": len(graph.triples),
        "entities": graph.num_entities - graph.num_items,
        "relations": len(relation_ids),
        "linked_items": linked.height,
        "links_without_interactions": links.height - linked.height,
        "repeated_triples": len(dense) - len(distinct),
        "entities_below_core": whole.num_entities - graph.num_entities,
        "triples_below_core": len(distinct) - len(graph.triples),
    }
    return facts, digest.hexdigest()


_NAMED = {"raw_id": pl.String, "name": pl.String}


def _read(source: Source, name: str, setting: str, columns: list[str]) -> pl.DataFrame:
    """The columns as text, each cell filled."""
    path = source.root / name
    if not path.is_file():
        near = did_you_mean(name, sorted(p.name for p in source.root.iterdir()))
        raise DataError(f"knowledge_graph.{setting}.source {name!r} is not in {source.root}; {near}")
    frame, _ = read_whole(path, None, BadRows(quarantine=False))
    for column in columns:
        if column not in frame.columns:
            raise DataError(
                f"{name}: there is no column {column!r} for knowledge_graph.{setting};"
                f" {did_you_mean(column, frame.columns)}"
            )
        if frame.schema[column].is_nested() or frame.schema[column].is_float():
            raise DataError(f"{name}, column {column!r}: ids must be whole numbers or text, got {frame.schema[column]}")
    text = frame.select(pl.col(column).cast(pl.String).str.strip_chars() for column in columns)
    for column in columns:
        empty = (text[column].is_null() | (text[column] == "")).arg_true()
        if len(empty):
            raise DataError(f"{name}, row {empty[0] + 1}, column {column!r}: the cell is empty; fill or drop it")
    return text


def _once(name: str, links: pl.DataFrame, column: str) -> None:
    again = (~links[column].is_first_distinct()).arg_true()
    if len(again):
        raise DataError(
            f"{name}, row {again[0] + 1}, column {column!r}: value {links[column][int(again[0])]!r} was linked before"
            f" ({len(again):,} such rows); an item is one entity, keep one row for each"
        )


def _names(source: Source, settings: Names | None, ids: list[str], what: str, triples: str) -> dict[str, str]:
    """Name of every id; the id itself where there is no file of names."""
    if settings is None:
        return {raw: f"{what} {raw}" for raw in ids}
    setting = "relations" if what == "relation" else "entities"
    frame = _read(source, settings.source, setting, [settings.id, settings.name])
    names = dict(zip(frame[settings.id].to_list(), frame[settings.name].to_list(), strict=True))
    missing = [raw for raw in ids if raw not in names]
    if missing:
        raise DataError(
            f"{triples} has {what} {missing[0]!r} ({len(missing):,} such), but {settings.source}, column"
            f" {settings.id!r}, has not; add it there, or drop knowledge_graph.{setting}"
        )
    return names


def _first(ids: pl.Series) -> str:
    return ", ".join(map(repr, ids.head(3).to_list())) or "none"
