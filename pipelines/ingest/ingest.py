"""The stage: read, clean, split, audit, write atomically."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from embeddings.tables.memory import return_freed_memory
from pipelines import config
from pipelines.atomic import atomic_directory, write_json
from pipelines.audit import audit_split
from pipelines.dataset import MANIFEST, SPLITS, Dataset, Manifest
from pipelines.errors import DataError
from pipelines.ingest import readers
from pipelines.ingest.check import BadRows
from pipelines.ingest.entities import entity_table
from pipelines.ingest.events import Collected, Events
from pipelines.ingest.filters import apply_filters
from pipelines.ingest.knowledge import write_knowledge
from pipelines.ingest.plan import make_plan
from pipelines.ingest.source import Source, names_apart, resolve
from pipelines.ingest.text import TextFile
from pipelines.ingest.write import FileHash, content_hashes, write_events
from pipelines.split import Facts, assign_splits, describe_splits

Progress = Callable[[str, int, int | None], None]
QUARANTINE = "quarantine.parquet"


def ingest(settings: config.Dataset, out: Path, progress: Progress | None = None) -> Dataset:
    """Make the dataset directory ``out`` from raw events.

    Args:
        settings: the dataset's section of the configuration.
        out: directory to make; one that is there already is replaced when all is well.
        progress: called with stage, units done (bytes while reading, else steps) and units in all.

    Raises:
        DataError: The input is unusable; the message names file, row, column and value. ``out`` is as it was.
        LeakError: The splits overlap. ``out`` is as it was.
    """
    tell = progress or (lambda stage, done, total: None)
    source = resolve(settings)
    source_hash = FileHash(source.files)
    bad = BadRows(quarantine=settings.on_error == "quarantine")
    events = _collect(source, settings, bad, tell)
    return_freed_memory()
    tell("filter", 0, 1)
    filters = apply_filters(events, settings.filters)
    tell("split", 0, 1)
    split, facts = assign_splits(events, settings.split)
    if settings.filters.deduplicate == "none":
        split = _drop_repeats(events, split, facts)
        describe_splits(events, split, settings.split, facts)
    tell("write", 0, 1)
    with atomic_directory(out) as temporary:
        users, user_facts = entity_table("user", events.users, settings.users, source, bad)
        items, item_facts = entity_table("item", events.items, settings.items, source, bad)
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            hashes = beside.submit(content_hashes, events, split, users, items)
            write_events(temporary, events, split, users, items)
            train_hash, content_hash = hashes.result()
        knowledge: dict[str, int] = {}
        if settings.knowledge_graph is not None:
            knowledge, knowledge_hash = write_knowledge(temporary, settings.knowledge_graph, items, source)
            content_hash = hashlib.blake2b(f"{content_hash}{knowledge_hash}".encode(), digest_size=32).hexdigest()
        if bad.counts:
            bad.frame().write_parquet(temporary / QUARANTINE, compression="zstd")
        manifest = Manifest(
            name=settings.name,
            num_users=len(users),
            num_items=len(items),
            counts=dict(zip(SPLITS, np.bincount(split, minlength=3).tolist(), strict=True)),
            source=settings.source,
            source_hash=source_hash.result(),
            content_hash=content_hash,
            train_hash=train_hash,
            columns=[name for name in events.columns if name != "split"],
            filters=filters,
            split=facts,
            quarantine=dict(bad.counts),
            leak_audit=[],
            entities={"users": user_facts, "items": item_facts},
            knowledge_graph=knowledge,
        )
        del events, split
        return_freed_memory()
        tell("audit", 0, 1)
        audit = audit_split(Dataset(temporary, manifest))
        audit.raise_if_failed()
        audited = manifest.model_copy(update={"leak_audit": [check.as_dict() for check in audit.checks]})
        write_json(temporary / MANIFEST, audited.model_dump())
    tell("done", 1, 1)
    return Dataset.open(out)


def _collect(source: Source, settings: config.Dataset, bad: BadRows, tell: Progress) -> Events:
    total, done = sum(path.stat().st_size for path in source.files), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        tell("read", done, total)

    tell("read", 0, total)
    collected = Collected()
    for frame in _frames(source, settings, bad, advance):
        collected.add(frame)
    bad.raise_if_any()
    if not collected.rows:
        names = ", ".join(names_apart(source.files)[:3])
        aside = f"; all {sum(bad.counts.values()):,} rows are bad: {bad.first}" if bad.first else ""
        raise DataError(f"{names}: no interactions, the source has no usable row{aside}")
    tell("index", 0, 1)
    return collected.events()


def _frames(
    source: Source, settings: config.Dataset, bad: BadRows, advance: Callable[[int], None]
) -> Iterator[pl.DataFrame]:
    """Canonical frames of all files, in order; one plan, made from the first file, serves them all."""
    named = list(zip(source.files, names_apart(source.files), strict=True))
    (first, called), names = named[0], settings.columns_without_header
    if names is not None and source.format not in {"csv", "tsv"}:
        raise DataError(f"columns_without_header is for csv and tsv; {called} is {source.format}, leave it out")
    match source.format:
        case "parquet":
            plan = make_plan(called, readers.parquet_sample(first, called), settings)
            for path, called in named:
                yield from readers.read_parquet(path, called, plan, bad, advance)
        case "jsonl":
            plan = make_plan(called, readers.jsonl_sample(first, called), settings)
            for path, called in named:
                yield from readers.read_jsonl(path, called, plan, bad, advance)
        case "lightgcn":
            for path, called in named:
                yield from readers.read_lightgcn(path, called, bad, advance)
        case _:
            plan = make_plan(called, TextFile(first, source.format, names, called).sample(), settings)
            for path, called in named:
                split = readers.split_of(path) if source.format == "recbole" and "split" not in plan.fields else None
                for frame in TextFile(path, source.format, names, called).events(plan, bad, advance):
                    yield frame if split is None else frame.with_columns(pl.lit(split, dtype=pl.UInt8).alias("split"))


def _drop_repeats(events: Events, split: npt.NDArray[np.uint8], facts: Facts) -> npt.NDArray[np.uint8]:
    """Drop repeats of a pair from the later splits; repeats within one split stay."""
    first = np.flatnonzero(np.r_[True, (np.diff(events.user) != 0) | (np.diff(events.item) != 0)])
    earliest = np.repeat(np.minimum.reduceat(split, first), np.diff(np.r_[first, len(split)]))
    keep = split == earliest
    facts["repeats_dropped"] = int(np.count_nonzero(~keep))
    events.take(keep)
    kept: npt.NDArray[np.uint8] = split[keep]
    return kept
