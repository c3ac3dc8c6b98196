"""The section ``semantic_ids`` of an experiment: features, tokeniser, quality gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from embeddings.names import SEMANTIC
from pipelines.config_problems import Finding
from pipelines.config_section import Section, Width

if TYPE_CHECKING:
    from pipelines.config import Compressor

GRAPH_LEVELS = 3
"""Levels of codes that are made from the graph, those of ``embeddings.semantic_id.compress.WIDTHS``."""


class TextFeatures(Section):
    """TF-IDF of the words of titles, text, category and list columns, then truncated SVD."""

    name: Literal["text"] = "text"
    columns: tuple[str, ...] = Field(default=(), description="of the items; none: all of text, category and list kind")
    dim: int = Field(default=64, ge=1)
    min_items: int = Field(default=2, ge=1, description="words of fewer items are left out")


class CollaborativeFeatures(Section):
    """Vectors of the training graph: its leading singular space, or random projections (FastRP)."""

    name: Literal["spectral", "fast_rp"] = "spectral"
    dim: int = Field(default=64, ge=1)


class MatrixFeatures(Section):
    """Vectors of your own: ``.npy`` float [items, D] in index order, or ``.parquet`` with ``raw_id`` and ``vector``."""

    name: Literal["matrix"] = "matrix"
    source: str


class SentenceFeatures(Section):
    """A sentence-transformers model, which must be installed, over the text of the columns."""

    name: Literal["sentence_transformers"] = "sentence_transformers"
    model: str = "sentence-transformers/sentence-t5-base"
    columns: tuple[str, ...] = ()


Features = Annotated[
    TextFeatures | CollaborativeFeatures | MatrixFeatures | SentenceFeatures, Field(discriminator="name")
]
Widths = Annotated[tuple[Width, ...], Field(min_length=1)]


class RqKmeans(Section):
    """Residual k-means; ``balanced`` gives every code of a level as many items (OneRec)."""

    name: Literal["rq_kmeans"] = "rq_kmeans"
    widths: Widths = (256, 256, 256)
    balanced: bool = False
    normalised: bool = Field(default=False, description="scale residuals to length one before each level")


class RqVae(Section):
    """A residually quantised autoencoder (TIGER)."""

    name: Literal["rq_vae"] = "rq_vae"
    widths: Widths = (256, 256, 256)
    hidden: tuple[Width, ...] = (512, 256, 128)
    latent: int = Field(default=32, ge=1)
    beta: float = Field(default=0.25, ge=0)
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    sinkhorn: float = Field(default=0.003, ge=0, description="of the last level; 0: nearest code")


class Opq(Section):
    """Optimised product quantisation: long ids whose digits have no order, for rpg (Ge et al. 2013)."""

    name: Literal["opq"] = "opq"
    digits: int = Field(default=32, ge=1, description="must divide the columns of the features")
    width: int = Field(default=256, ge=1, description="codes of a digit")
    passes: int = Field(default=10, ge=0, description="improvements of the rotation")
    whitened: bool = Field(default=False, description="scale the principal directions alike first, as RPG does")


class RandomIds(Section):
    """Random distinct codes (Hua et al.: RID)."""

    name: Literal["random"] = "random"
    widths: Widths = (256, 256, 256)


class SequentialIds(Section):
    """Consecutive numbers in the order of the training histories (SID)."""

    name: Literal["sequential"] = "sequential"
    width: int = Field(default=256, ge=2)


class CollaborativeIds(Section):
    """Recursive spectral clustering of the items' co-occurrence in train (CID; ``hybrid``: + IID)."""

    name: Literal["collaborative"] = "collaborative"
    clusters: int = Field(default=20, ge=2)
    largest: int = Field(default=500, ge=1, description="clusters of more items are divided again")
    hybrid: bool = False


class CategoryIds(Section):
    """The category path of a list column, or several category columns (SemID; ``hybrid``: + IID)."""

    name: Literal["category"] = "category"
    columns: tuple[str, ...] = Field(min_length=1)
    hybrid: bool = False


Tokeniser = Annotated[
    RqKmeans | RqVae | Opq | RandomIds | SequentialIds | CollaborativeIds | CategoryIds, Field(discriminator="name")
]


class QualityGates(Section):
    """Bounds of :class:`embeddings.semantic_id.quality.Gates`."""

    max_error: float = Field(default=0.9, gt=0)
    min_usage: float = Field(default=0.5, ge=0, le=1)
    min_entropy: float = Field(default=0.6, ge=0, le=1)
    max_colliding: float = Field(default=0.5, ge=0, le=1)
    max_prefix_share: float | None = Field(
        default=None, gt=0, le=1, description="null: 0.25, or twice an even share of fewer than eight first codes"
    )
    hierarchy: bool | None = Field(
        default=None, description="a longest shared prefix must mean a higher cosine; null: unless digits have no order"
    )


class SemanticIds(Section):
    """How items get semantic codes; several ``features`` are put side by side, each with the same total variance."""

    features: tuple[Features, ...] = Field(default=(TextFeatures(),), min_length=1)
    tokeniser: Tokeniser = RqKmeans()
    collisions: Literal["keep", "digit", "reassign"] = "keep"
    digit_width: int | None = Field(
        default=None, ge=1, description="items of one code that a digit tells apart, later ones too; null: those there"
    )
    without_content: Literal["error", "share"] = Field(
        default="error", description="items without any content; share: they are all alike"
    )
    gates: QualityGates = QualityGates()
    codes: str | None = Field(
        default=None, description="a run, or its folder semantic_ids: its frozen codes, instead of all other settings"
    )

    @model_validator(mode="after")
    def _check_together(self) -> SemanticIds:
        others = sorted(self.model_fields_set - {"codes"})
        if self.codes is not None and others:
            raise ValueError(
                f"frozen codes keep the settings that they were made with: remove {', '.join(others)}, or write"
                " semantic_ids={codes: ..} to replace the whole section"
            )
        if self.digit_width is not None and self.collisions != "digit":
            raise ValueError(f"digit_width is for collisions: digit, got {self.collisions}; remove it")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Frozen codes alone, or all else without what is not set."""
        if self.codes is not None:
            return {"codes": self.codes}
        return {name: value for name, value in plain(self).items() if value is not None}

    @property
    def reads_graph(self) -> bool:
        """Whether the codes depend on the training interactions, and not on content alone."""
        if isinstance(self.tokeniser, RqKmeans | RqVae | Opq):
            return self.content_features != self.features
        return isinstance(self.tokeniser, SequentialIds | CollaborativeIds)

    @property
    def is_hierarchy(self) -> bool:
        """Whether the codes must be one: as the gate says, or else where the tokeniser gives its levels an order."""
        wanted = self.gates.hierarchy
        return not isinstance(self.tokeniser, Opq) if wanted is None else wanted

    @property
    def content_features(self) -> tuple[Features, ...]:
        """Those that an item has before anyone has it: all but those of the training graph."""
        return tuple(one for one in self.features if not isinstance(one, CollaborativeFeatures))

    @property
    def levels(self) -> int | None:
        """Codes of an item at most; None where the data decide it."""
        match self.tokeniser:
            case RqKmeans(widths=widths) | RqVae(widths=widths) | RandomIds(widths=widths):
                return len(widths) + (self.collisions == "digit")
            case Opq(digits=digits):
                return digits + (self.collisions == "digit")
        return None


UserCompressor = Literal["graph", "graphhash", "frequency", "residual_codes"]


class SemanticRows(Section):
    """How ``semantic_ngram`` and ``semantic_spm`` make rows; users have codes made from the graph."""

    n: int = Field(default=1, ge=1, description="codes of an n-gram")
    popularity_share: float = Field(default=0.0, ge=0, lt=1, description="rows of ids of about the same frequency")
    users: UserCompressor = Field(
        default="graph", description="how users, who have no content, share rows: codes of the graph, or a compressor"
    )
    codes: Literal["items", "graph"] = Field(
        default="items",
        description="codes of the items: those of `semantic_ids`, or made from the graph like the users'",
    )


def check_sources(features: tuple[Features, ...]) -> Iterator[Finding]:
    """Yield a finding for every file of vectors that is not there."""
    for index, one in enumerate(features):
        if isinstance(one, MatrixFeatures) and not Path(one.source).is_file():
            yield ("features", index, "source"), f"{one.source!r} is no file"


def check_semantic_ids(ids: SemanticIds | None, *, dense: bool) -> Iterator[Finding]:
    """Yield a finding for files that are not there, and for features that neither codes nor a ``dense`` head read."""
    if ids is None:
        return
    for key, message in check_sources(ids.features):
        yield ("semantic_ids", *key), message
    if dense or isinstance(ids.tokeniser, (RqKmeans, RqVae, Opq)):
        return
    for name in ("features", "without_content"):
        if getattr(ids, name) != getattr(SemanticIds(), name):
            yield ("semantic_ids", name), f"{ids.tokeniser.name} ids are not made of features; remove it"


def check_semantic_rows(compressor: Compressor, ids: SemanticIds | None) -> Iterator[Finding]:
    """Yield a finding for settings of semantic rows that the compressor does not read, or its codes are too short for.

    Args:
        compressor: of a variant, or of a field.
        ids: the codes of the items; None where codes are made from the graph.
    """
    rows, where = compressor.semantic, ("compressor", "semantic")
    if rows is None:
        return
    levels = GRAPH_LEVELS if ids is None or rows.codes == "graph" else ids.levels
    if compressor.name not in SEMANTIC:
        yield where, f"only {' and '.join(SEMANTIC)} have it, not {compressor.name}; remove it"
    elif compressor.name == "semantic_spm" and rows.n != 1:
        yield (*where, "n"), f"semantic_spm finds the lengths of its pieces, got {rows.n}; remove it"
    elif levels is not None and rows.n > levels:
        yield (*where, "n"), f"got {rows.n}, but the codes have {levels} levels"
