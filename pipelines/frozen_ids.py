"""Frozen semantic ids: codes by raw id, and all that gives new items theirs, in a folder of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from embeddings.semantic_id.codes import FullError, SemanticCodes
from embeddings.semantic_id.opq import ProductQuantiser
from embeddings.semantic_id.residual import ResidualQuantiser
from embeddings.semantic_id.rqvae import RqVae
from pipelines.atomic import atomic_directory, write_json
from pipelines.cache import content_hash
from pipelines.config_semantic import Opq, RqKmeans, SemanticIds, Tokeniser
from pipelines.config_semantic import RqVae as RqVaeSettings
from pipelines.errors import DataError
from pipelines.frozen_settings import FORMAT, MANIFEST, read_manifest
from pipelines.item_features import FeatureTransform

CODES, ITEMS = "codes.safetensors", "items.json"
TOKENISER, FEATURES = "tokeniser.safetensors", "features.safetensors"
Quantiser = ResidualQuantiser | ProductQuantiser | RqVae


@dataclasses.dataclass(frozen=True)
class Codebook:
    """What codes were made by: features of items to vectors, and these to codes."""

    features: FeatureTransform
    tokeniser: Quantiser


@dataclasses.dataclass(frozen=True)
class FrozenIds:
    """Codes that items keep for good.

    Attributes:
        settings: that the codes were made with.
        raw_ids: of M items, those that were added last; an item that is gone keeps its row, so that none gets its code.
        codes: of these.
        codebook: None for codes without one, as random ones.
        graph_hash: of the training graph that codes of it were made from, else None.
        extends: version of the codes that these were added to, else empty.
    """

    settings: SemanticIds
    raw_ids: tuple[str, ...]
    codes: SemanticCodes
    codebook: Codebook | None
    graph_hash: str | None = None
    extends: str = ""

    def of(self, raw_ids: Sequence[str]) -> SemanticCodes:
        """The codes of a catalogue, all of whose items are known."""
        row = {raw: place for place, raw in enumerate(self.raw_ids)}
        codes = self.codes.codes[[row[raw] for raw in raw_ids]]
        return SemanticCodes(codes, self.codes.widths, catalogue_hash(raw_ids), self.codes.source)

    def paths(self, codes: SemanticCodes) -> SemanticCodes:
        """``codes`` without the digit that tells the items of a code apart."""
        levels = codes.levels if self.codebook is None else len(self.codebook.tokeniser.widths)
        return SemanticCodes(codes.codes[:, :levels], codes.widths[:levels], codes.catalogue, codes.source)

    def new_items(self, items: pl.DataFrame) -> pl.DataFrame:
        """The rows of ``items`` that have no code.

        Raises:
            DataError: None has one.
        """
        new = items.filter(~pl.col("raw_id").is_in(list(self.raw_ids)))
        if new.height == items.height:
            raise DataError(
                f"the frozen codes have none of these {items.height:,} items, the first is {items['raw_id'][0]!r} and"
                f" theirs {self.raw_ids[0]!r}; take codes of the same catalogue, or tokenise this one anew"
            )
        return new

    def extended(self, new: pl.DataFrame) -> FrozenIds:
        """The same with codes for new items: nothing is trained, and the known items keep theirs bit for bit.

        Args:
            new: ``raw_id`` and the columns that the features read.

        Raises:
            DataError: There is no tokeniser for new items, the features cannot be made, or no code is free.
        """
        if new.is_empty():
            return self
        if self.codebook is None:
            raise DataError(
                f"{new.height:,} items have no frozen code, the first is {new['raw_id'][0]!r}, and the tokeniser"
                f" {self.settings.tokeniser.name} has none for new items; use rq_kmeans, rq_vae or opq"
            )
        tokeniser, how = self.codebook.tokeniser, self.settings.collisions
        vectors = self.codebook.features.transform(new, share_empty=self.settings.without_content == "share")
        paths = tokeniser.encode(vectors)
        cost = tokeniser.last_cost(vectors, paths) if how == "reassign" else None
        raw_ids = (*self.raw_ids, *new["raw_id"])
        try:
            codes = self.codes.extend(paths, how, catalogue_hash(raw_ids), cost)
        except FullError as error:
            raise DataError(f"no room for new item {new['raw_id'][error.item]!r}: {error}") from error
        return dataclasses.replace(self, raw_ids=raw_ids, codes=codes, extends=self.codes.version)

    def save(self, folder: Path) -> None:
        """Write ``folder``, atomically: the codes, the raw ids, the tokeniser, the features, and a manifest of all."""
        with atomic_directory(folder) as out:
            self.codes.save(out / CODES)
            write_json(out / ITEMS, list(self.raw_ids))
            if self.codebook is not None:
                self.codebook.tokeniser.save(out / TOKENISER)
                self.codebook.features.save(out / FEATURES)
            facts = {
                "format": FORMAT,
                "version": self.codes.version,
                "extends": self.extends,
                "items": len(self.raw_ids),
                "widths": self.codes.widths,
                "graph_hash": self.graph_hash,
                "settings": self.settings.model_dump(mode="json"),
                "files": {path.name: content_hash(path) for path in sorted(out.iterdir())},
            }
            write_json(out / MANIFEST, facts)

    @classmethod
    def load(cls, folder: Path) -> FrozenIds:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The folder holds something else, or a file is missing or damaged.
        """
        facts = read_manifest(folder)
        for name, expected in facts["files"].items():
            found = content_hash(folder / name) if (folder / name).is_file() else "no file"
            if found != expected:
                raise DataError(f"{folder / name} is damaged ({found}, not {expected}); copy the folder again")
        settings = SemanticIds.model_validate(facts["settings"])
        tokeniser = _load_tokeniser(settings.tokeniser, folder / TOKENISER)
        codebook = None if tokeniser is None else Codebook(FeatureTransform.load(folder / FEATURES), tokeniser)
        raw_ids = tuple(json.loads((folder / ITEMS).read_bytes()))
        codes = SemanticCodes.load(folder / CODES)
        codes.require(catalogue_hash(raw_ids), len(raw_ids))
        return cls(settings, raw_ids, codes, codebook, facts["graph_hash"], facts["extends"])


def catalogue_hash(raw_ids: Sequence[str]) -> str:
    """16 hex digits of the raw item ids in their order: what the rows of codes stand for."""
    return hashlib.sha256("\n".join(raw_ids).encode()).hexdigest()[:16]


def _load_tokeniser(settings: Tokeniser, path: Path) -> Quantiser | None:
    match settings:
        case RqKmeans():
            return ResidualQuantiser.load(path)
        case Opq():
            return ProductQuantiser.load(path)
        case RqVaeSettings():
            return RqVae.load(path)
        case _:
            return None
