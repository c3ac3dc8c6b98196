"""The semantic-id stage: item features to codes, checked by the quality gates, frozen and versioned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from embeddings.semantic_id import indexing, quality
from embeddings.semantic_id.codes import Codes, SemanticCodes
from embeddings.semantic_id.opq import fit_opq
from embeddings.semantic_id.residual import fit_residual
from embeddings.semantic_id.rqvae import RqVaeSettings, fit_rq_vae
from embeddings.spectral import Matrix
from pipelines import config_semantic as config
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache, content_hash
from pipelines.dataset import graph_hash
from pipelines.errors import DataError
from pipelines.frozen_ids import Codebook, FrozenIds, Quantiser, catalogue_hash
from pipelines.frozen_settings import FOLDER, MANIFEST, find_frozen
from pipelines.item_features import Catalogue, features_hash, fit_features
from pipelines.stages.compress import GRAPH
from pipelines.stages.versions import versions
from recsys.rng import generator
from recsys.sequences import Sequences

VERSION = 6
QUALITY = "quality.json"
Json = dict[str, Any]


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

    @property
    def frozen(self) -> Path:
        """The folder with all that :class:`FrozenIds` has."""
        return self.directory / FOLDER


def semantic_stage(cache: Cache, dataset: StoredCatalogue, settings: config.SemanticIds, seed: int) -> Tokenised:
    """Tokenise the items, or find them tokenised. Nothing is kept of codes that a gate refuses.

    With ``settings.codes`` items keep their frozen codes, and new ones get theirs without training.

    Raises:
        DataError: The features cannot be made, the tokeniser has too few items, frozen codes do not fit, or a quality
            gate failed.
    """
    wanted = settings.model_dump(mode="json")
    frozen = None
    if settings.codes is not None:
        folder = find_frozen(settings.codes)
        frozen, wanted = FrozenIds.load(folder), {"codes": content_hash(folder / MANIFEST)}
    key = {
        "version": VERSION,
        "dataset": dataset.content_hash,
        "items": features_hash(dataset.path, (frozen.settings if frozen else settings).features),
        "settings": wanted,
        "seed": seed,
        "libraries": versions(["torch", "numpy", "scipy", "numba"]),
    }
    entry = cache.stage("semantic", key, lambda out: _build(out, dataset, frozen or settings, seed))
    codes = FrozenIds.load(entry / FOLDER).of(dataset.raw_item_ids())
    return Tokenised(codes, json.loads((entry / QUALITY).read_bytes()), entry)


def catalogue(dataset: StoredCatalogue) -> str:
    """What the codes of ``dataset`` are of, see :func:`pipelines.frozen_ids.catalogue_hash`."""
    return catalogue_hash(dataset.raw_item_ids())


def _build(directory: Path, dataset: StoredCatalogue, source: FrozenIds | config.SemanticIds, seed: int) -> None:
    try:
        if isinstance(source, FrozenIds):
            ids, found = _extend(dataset, source, seed)
        else:
            ids, found = _tokenise(dataset, source, seed)
    except ValueError as error:
        which = f" with the frozen codes {source.codes.version}" if isinstance(source, FrozenIds) else ""
        raise DataError(f"semantic_ids{which}: {error}") from error
    ids.save(directory / FOLDER)
    write_json(directory / QUALITY, finite(found))
    write_json(directory / GRAPH, {"graph_hash": graph_hash(dataset.matrix("train"))})


def _tokenise(dataset: StoredCatalogue, settings: config.SemanticIds, seed: int) -> tuple[FrozenIds, Json]:
    codes, fitted = _codes(dataset, settings, seed)
    codes = SemanticCodes(codes.codes, codes.widths, catalogue(dataset), settings.model_dump(mode="json"))
    vectors, codebook = fitted or (None, None)
    found = _quality(codes, vectors, codebook, settings, seed)
    if settings.collisions != "keep" and (settings.digit_width or not codes.unique):
        cost = None if fitted is None else fitted[1].tokeniser.last_cost(fitted[0], codes.codes)
        codes = codes.resolve_collisions(settings.collisions, cost, settings.digit_width)
    graph = graph_hash(dataset.matrix("train")) if settings.reads_graph else None
    ids = FrozenIds(settings, tuple(dataset.raw_item_ids()), codes, codebook, graph)
    return ids, found | {"version": codes.version}


def _extend(dataset: StoredCatalogue, frozen: FrozenIds, seed: int) -> tuple[FrozenIds, Json]:
    """Codes of the items that ``frozen`` knows, and of those that are new; the gates look at both together."""
    if frozen.graph_hash not in (None, graph_hash(dataset.matrix("train"))):
        raise DataError(
            "they were made from another training graph, which has no vectors of new items and may have pairs that are"
            " held out here; make codes of content, or tokenise these items anew"
        )
    new = frozen.new_items(dataset.items)
    ids = frozen.extended(new)
    codes = ids.of(dataset.raw_item_ids())
    vectors = None
    if ids.codebook is not None and ids.codebook.features.takes_new_items:
        vectors = ids.codebook.features.transform(dataset.items, share_empty=True)
    found = _quality(ids.paths(codes), vectors, ids.codebook, ids.settings, seed)
    counts = {"kept": codes.num_items - new.height, "added": new.height, "reserved": len(ids.raw_ids) - codes.num_items}
    return ids, found | {"version": codes.version, "frozen": {"version": frozen.codes.version, **counts}}


def _quality(
    paths: SemanticCodes, vectors: Matrix | None, codebook: Codebook | None, settings: config.SemanticIds, seed: int
) -> Json:
    decoded = None if codebook is None else codebook.tokeniser.decode(paths.codes)
    found = quality.measure(paths, vectors, decoded, generator(seed, "semantic ids", "quality"))
    if codebook is not None:  # codes without a codebook are distinct; how evenly they are used is up to the data
        bounds = settings.gates.model_dump() | {"hierarchy": settings.is_hierarchy}
        quality.check(found, quality.Gates(**bounds))
    return found | {"collisions": settings.collisions}


def _codes(
    dataset: StoredCatalogue, settings: config.SemanticIds, seed: int
) -> tuple[SemanticCodes, tuple[Matrix, Codebook] | None]:
    """The codes before collisions are resolved, and the vectors that they were made of with what made them."""
    draws = generator(seed, "semantic ids", "tokeniser")
    match settings.tokeniser:
        case config.RqKmeans() | config.RqVae() | config.Opq() as quantiser:
            share = settings.without_content == "share"
            features, vectors = fit_features(dataset, settings.features, seed, share_empty=share)
            model, found = _quantised(quantiser, vectors, draws)
            return SemanticCodes(found, model.widths), (vectors, Codebook(features, model))
        case config.RandomIds(widths=widths):
            return indexing.random_codes(dataset.num_items, widths, draws), None
        case config.SequentialIds(width=width):
            read = dataset.sequences("train")
            histories = [items.tolist() for items in np.split(read.items, read.offsets[1:-1])]
            return indexing.sequential_codes(histories, dataset.num_items, width), None
        case config.CollaborativeIds(clusters=clusters, largest=largest, hybrid=hybrid):
            codes = indexing.collaborative_codes(dataset.matrix("train"), clusters, largest, draws)
        case config.CategoryIds(columns=columns, hybrid=hybrid):
            codes = indexing.category_codes(_paths(dataset, columns))
    return (indexing.hybrid_codes(codes) if hybrid else codes), None


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
