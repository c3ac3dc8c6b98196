"""A run for use elsewhere: vectors of a variant (safetensors, Parquet), and the training graph (GraphML)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from safetensors.torch import save

from embeddings.graph_export import items_to_networkx, to_networkx, write_graphml
from pipelines.atomic import atomic_directory, write_bytes, write_json
from pipelines.errors import DataError
from pipelines.run_directory import find_run, find_variant, open_dataset
from pipelines.run_files import RunFiles
from recsys.checkpoint import load_model
from recsys.retriever import VectorRetriever


def export_vectors(run: Path, out: Path, *, variant: str | None = None) -> Path:
    """Write ``vectors.safetensors``, ``users.parquet``, ``items.parquet`` and ``manifest.json``.

    Row i of ``users`` (float32 [users, D]) belongs to row i of ``users.parquet``, and so for items; the score of a user
    and an item is the inner product of their rows.

    Args:
        run: Run directory or its name.
        out: Directory to write; must not exist.
        variant: Name of a variant; the best one on validation if None.

    Raises:
        DataError: There is no such run or variant, its dataset is gone, or the model has no vectors.
        FileExistsError: ``out`` exists.
    """
    directory = find_run(run)
    chosen = find_variant(directory, variant)
    if out.exists():
        raise FileExistsError(f"{out} is there already; name a directory that does not exist")
    dataset = open_dataset(directory)
    model = load_model(RunFiles(directory).checkpoint_dir(chosen.name, chosen.seed))
    if not isinstance(model, VectorRetriever):
        raise DataError(f"variant {chosen.name} ({chosen.model}) has no vectors; export one that has, as mf or sasrec")
    users = model.user_vectors(np.arange(model.num_users, dtype=np.int64)).contiguous()
    items = model.item_vectors(range(model.num_items)).contiguous()
    with atomic_directory(out) as temporary:
        write_bytes(temporary / "vectors.safetensors", save({"users": users, "items": items}))
        dataset.users.select("raw_id").write_parquet(temporary / "users.parquet")
        titles = pl.DataFrame({"raw_id": dataset.raw_item_ids(), "title": dataset.item_titles()})
        titles.write_parquet(temporary / "items.parquet")
        facts = {
            "run": directory.name,
            "variant": chosen.name,
            "seed": chosen.seed,
            "model": chosen.model,
            "compressor": chosen.compressor,
            "score": "inner product",
            "dim": users.shape[1],
            "users": users.shape[0],
            "items": items.shape[0],
            "dataset": dataset.content_hash,
        }
        write_json(temporary / "manifest.json", facts)
    return out


def export_graph(run: Path, out: Path, *, sample_users: int | None = None, co_occurrence: bool = False) -> Path:
    """Write the graph of the training split as GraphML; nodes have ``raw_id``, ``name`` (title) and ``degree``.

    Args:
        run: Run directory or its name.
        out: File to write; must not exist.
        sample_users: Only so many users, the same ones each time, with their items; None for all.
        co_occurrence: Items alone, joined with the number of those users who have both as ``weight``.

    Raises:
        DataError: There is no such run, it is a ranking experiment, or its dataset is gone.
        FileExistsError: ``out`` exists.
        ValueError: The graph has too many edges, or ``sample_users`` is below 1.
    """
    directory = find_run(run)
    RunFiles(directory).refuse_ranking()
    if out.exists():
        raise FileExistsError(f"{out} is there already; name a file that does not exist")
    dataset = open_dataset(directory)
    train, titles = dataset.matrix("train"), dataset.item_titles()
    generator = np.random.default_rng(0)
    if co_occurrence:
        if sample_users is not None:
            train = train[np.sort(generator.permutation(train.shape[0])[:sample_users])]
        graph = items_to_networkx(train, titles)
    else:
        graph = to_networkx(train, dataset.user_titles(), titles, sample_users=sample_users, generator=generator)
    raw_ids = {"user": dataset.raw_user_ids(), "item": dataset.raw_item_ids()}
    for (kind, index), attributes in graph.nodes(data=True):
        attributes["raw_id"] = raw_ids[kind][index]
    write_graphml(out, graph)
    return out
