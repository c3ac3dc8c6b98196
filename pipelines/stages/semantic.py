"""The semantic-id stage: item features to codes, checked by the quality gates, frozen and versioned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from embeddings.semantic_id import indexing, quality
from embeddings.semantic_id.codes import Codes, SemanticCodes
from embeddings.semantic_id.opq import ProductQuantiser, fit_opq
from embeddings.semantic_id.residual import ResidualQuantiser, fit_residual
from embeddings.semantic_id.rqvae import RqVae, RqVaeSettings, fit_rq_vae
from pipelines import config_semantic as config
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache
from pipelines.dataset import graph_hash
from pipelines.errors import DataError
from pipelines.item_features import Catalogue, features_hash, item_features
from pipelines.stages.compress import GRAPH
from pipelines.stages.versions import versions
from recsys.rng import generator
from recsys.sequences import Sequences

VERSION = 4
CODES, QUALITY, TOKENISER = "codes.safetensors", "quality.json", "tokeniser.safetensors"
Matrix = npt.NDArray[np.float32]
Quantiser = ResidualQuantiser | ProductQuantiser | RqVae


class StoredCatalogue(Catalogue, Protocol):
    """A catalogue in a directory with ``items.parquet``."""

    @property
    def path(self) -> Path:
        """The directory."""

    @property
    def content_hash(self) -> str:
        """Of everything that the codes may depend on."""

    def sequences(self, split: Literal["train"], /) -> Sequences:
        """The train interactions of each user, in their order."""


@dataclasses.dataclass(frozen=True)
class Tokenised:
    """The codes of a catalogue, what :func:`embeddings.semantic_id.quality.measure` found, and where they lie."""

    codes: SemanticCodes
    quality: dict[str, Any]
    directory: Path


def semantic_stage(cache: Cache, dataset: StoredCatalogue, settings: config.SemanticIds, seed: int) -> Tokenised:
    """Tokenise the items, or find them tokenised. Nothing is kept of codes that a gate refuses.

    Raises:
        DataError: The features cannot be made, the tokeniser has too few items, or a quality gate failed.
    """
    key = {
        "version": VERSION,
        "dataset": dataset.content_hash,
        "items": features_hash(dataset.path, settings.features),
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "libraries": versions(["torch", "numpy", "scipy", "numba"]),
    }
    entry = cache.stage("semantic", key, lambda out: _tokenise(out, dataset, settings, seed))
    codes = SemanticCodes.load(entry / CODES)
    codes.require(catalogue(dataset), dataset.num_items)
    return Tokenised(codes, json.loads((entry / QUALITY).read_bytes()), entry)


def catalogue(dataset: StoredCatalogue) -> str:
    """16 hex digits of the raw item ids in their order: what the rows of codes stand for."""
    return hashlib.sha256("\n".join(dataset.raw_item_ids()).encode()).hexdigest()[:16]


def _tokenise(directory: Path, dataset: StoredCatalogue, settings: config.SemanticIds, seed: int) -> None:
    try:
        codes, vectors, model = _codes(dataset, settings, seed)
        plain = SemanticCodes(codes.codes, codes.widths, catalogue(dataset), settings.model_dump(mode="json"))
        decoded = None if model is None else model.decode(plain.codes)
        found = quality.measure(plain, vectors, decoded, generator(seed, "semantic ids", "quality"))
        if model is not None:  # codes without a codebook are distinct; how evenly they are used is up to the data
            bounds = settings.gates.model_dump() | {"hierarchy": settings.is_hierarchy}
            quality.check(found, quality.Gates(**bounds))
        if settings.collisions != "keep" and not plain.unique:
            cost = None if model is None or vectors is None else model.last_cost(vectors, plain.codes)
            plain = plain.resolve_collisions(settings.collisions, cost)
    except ValueError as error:
        raise DataError(f"semantic_ids: {error}") from error
    plain.save(directory / CODES)
    if model is not None:
        model.save(directory / TOKENISER)
    write_json(directory / QUALITY, finite(found | {"version": plain.version, "collisions": settings.collisions}))
    write_json(directory / GRAPH, {"graph_hash": graph_hash(dataset.matrix("train"))})


def _codes(
    dataset: StoredCatalogue, settings: config.SemanticIds, seed: int
) -> tuple[SemanticCodes, Matrix | None, Quantiser | None]:
    draws = generator(seed, "semantic ids", "tokeniser")
    match settings.tokeniser:
        case config.RqKmeans() | config.RqVae() | config.Opq() as quantiser:
            share = settings.without_content == "share"
            vectors = item_features(dataset, settings.features, seed, share_empty=share)
            model, found = _quantised(quantiser, vectors, draws)
            return SemanticCodes(found, model.widths), vectors, model
        case config.RandomIds(widths=widths):
            return indexing.random_codes(dataset.num_items, widths, draws), None, None
        case config.SequentialIds(width=width):
            read = dataset.sequences("train")
            histories = [items.tolist() for items in np.split(read.items, read.offsets[1:-1])]
            return indexing.sequential_codes(histories, dataset.num_items, width), None, None
        case config.CollaborativeIds(clusters=clusters, largest=largest, hybrid=hybrid):
            codes = indexing.collaborative_codes(dataset.matrix("train"), clusters, largest, draws)
        case config.CategoryIds(columns=columns, hybrid=hybrid):
            codes = indexing.category_codes(_paths(dataset, columns))
    return (indexing.hybrid_codes(codes) if hybrid else codes), None, None


def _quantised(
    settings: config.RqKmeans | config.RqVae | config.Opq, vectors: Matrix, draws: np.random.Generator
) -> tuple[Quantiser, Codes]:
    match settings:
        case config.RqKmeans(widths=widths, balanced=balanced, normalised=normalised):
            return fit_residual(vectors, widths, draws, balanced=balanced, normalised=normalised)
        case config.Opq(digits=digits, width=width, passes=passes, whitened=whitened):
            return fit_opq(vectors, digits, width, draws, passes=passes, whitened=whitened)
        case config.RqVae(widths=widths):
            plain = RqVaeSettings(**settings.model_dump(exclude={"name", "widths"}))
            return fit_rq_vae(vectors, widths, plain, draws)


def _paths(dataset: StoredCatalogue, columns: tuple[str, ...]) -> list[list[str]]:
    for name in columns:
        if name not in dataset.items.columns:
            raise DataError(f"items have no column {name!r} for category ids (there are {dataset.items.columns})")
    entries = [[_parts(value) for value in dataset.items[name].to_list()] for name in columns]
    return [[part for parts in row for part in parts] for row in zip(*entries, strict=True)]


def _parts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]
