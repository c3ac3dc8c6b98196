"""What is known about items, as vectors: text, the training graph, or a matrix of the user's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import safetensors
import safetensors.numpy
from pydantic import TypeAdapter
from scipy.sparse import csr_array

from embeddings.semantic_id.collaborative import fast_rp
from embeddings.spectral import Matrix, spectral_vectors
from pipelines.atomic import write_bytes
from pipelines.cache import content_hash
from pipelines.config_semantic import (
    CollaborativeFeatures,
    Features,
    MatrixFeatures,
    SentenceFeatures,
    TextFeatures,
)
from pipelines.dataset import ITEMS
from pipelines.errors import DataError
from pipelines.text_features import TextSpace, fit_text, text_columns, words
from recsys.rng import generator

FORMAT = "recsys item features 1"


class Catalogue(Protocol):
    """Items with their columns and their train interactions: a :class:`Dataset`, or the catalogue of a ranker."""

    @property
    def num_items(self) -> int:
        """Number of items."""

    @property
    def items(self) -> pl.DataFrame:
        """``raw_id`` and features; row i is item i."""

    def raw_item_ids(self) -> list[str]:
        """The ids of the source."""

    def matrix(self, split: Literal["train"], /) -> csr_array:
        """Float32 [users, items], ones at the train pairs."""


@dataclasses.dataclass(frozen=True)
class FittedFeatures:
    """One kind of features as fitted to a catalogue.

    Attributes:
        settings: with the columns that were read.
        text: the space of a text, else None.
        mean: float32 [D], subtracted first.
        spread: float32, what is then divided by.
    """

    settings: Features
    text: TextSpace | None
    mean: Matrix
    spread: np.float32

    def scaled(self, block: Matrix) -> Matrix:
        """``block`` float32 [N, D], centred and scaled."""
        return (block - self.mean) / self.spread


@dataclasses.dataclass(frozen=True)
class FeatureTransform:
    """What gives items that came later vectors of the same space, without a new fit: all kinds side by side."""

    parts: tuple[FittedFeatures, ...]

    @property
    def takes_new_items(self) -> bool:
        """Whether :meth:`transform` can be used: features are of content and know items by their raw id."""
        kinds = [part.settings for part in self.parts]
        return not any(
            isinstance(one, CollaborativeFeatures) or (isinstance(one, MatrixFeatures) and _in_order(one))
            for one in kinds
        )

    def transform(self, items: pl.DataFrame, *, share_empty: bool = False) -> Matrix:
        """Vectors float32 [N, D] of any N items; those of the items that it was fitted to are the same bits.

        Args:
            items: ``raw_id`` and the columns that were read; others are left out.
            share_empty: items without content are allowed, as in :func:`fit_features`.

        Raises:
            DataError: A column or file is missing or does not fit, items have no content, or features are of the
                training graph.
        """
        blocks = [_content_vectors(part.settings, part.text, items) for part in self.parts]
        empty = _empty(blocks)
        if empty.size and not share_empty:
            raise DataError(
                f"{empty.size:,} of {items.height:,} items have no content that the fitted features know, the first is"
                f" {items['raw_id'][int(empty[0])]!r}; give them words that others have, or fit all items anew"
            )
        return self.joined(blocks)

    def joined(self, blocks: list[Matrix]) -> Matrix:
        """Float32 [N, D] of the vectors of each kind."""
        scaled = [part.scaled(block) for part, block in zip(self.parts, blocks, strict=True)]
        return np.ascontiguousarray(np.concatenate(scaled, axis=1), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write ``path`` (safetensors, the settings as JSON in its header), atomically."""
        tensors: dict[str, npt.NDArray[Any]] = {}
        for place, part in enumerate(self.parts):
            tensors |= {f"{place}.mean": part.mean, f"{place}.spread": np.array(part.spread)}
            if part.text is not None:
                known = np.frombuffer(json.dumps(part.text.vocabulary).encode(), dtype=np.uint8)
                tensors |= {f"{place}.vocabulary": known, f"{place}.inverse": part.text.inverse}
                tensors |= {f"{place}.basis": part.text.basis}
        settings = [part.settings.model_dump(mode="json") for part in self.parts]
        header = {"item_features": json.dumps({"format": FORMAT, "features": settings}, sort_keys=True)}
        write_bytes(path, safetensors.numpy.save(tensors, metadata=header))

    @classmethod
    def load(cls, path: Path) -> FeatureTransform:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is foreign, truncated or damaged.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["item_features"])
                if facts["format"] != FORMAT:
                    raise ValueError(f"its format is {facts['format']!r}")
                settings = TypeAdapter(tuple[Features, ...]).validate_python(facts["features"])
                return cls(tuple(_loaded(one, file, str(place)) for place, one in enumerate(settings)))
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise DataError(f"{path} holds no {FORMAT!r} ({error}); fit the features again") from error


def _loaded(settings: Features, file: Any, place: str) -> FittedFeatures:
    text = None
    if isinstance(settings, TextFeatures):
        known = tuple(json.loads(file.get_tensor(f"{place}.vocabulary").tobytes()))
        text = TextSpace(known, file.get_tensor(f"{place}.inverse"), file.get_tensor(f"{place}.basis"))
    return FittedFeatures(settings, text, file.get_tensor(f"{place}.mean"), file.get_tensor(f"{place}.spread")[()])


def item_features(
    dataset: Catalogue, features: tuple[Features, ...], seed: int, *, share_empty: bool = False
) -> Matrix:
    """The vectors of :func:`fit_features` alone."""
    return fit_features(dataset, features, seed, share_empty=share_empty)[1]


def fit_features(
    dataset: Catalogue, features: tuple[Features, ...], seed: int, *, share_empty: bool = False
) -> tuple[FeatureTransform, Matrix]:
    """Vectors of all items, the kinds of features side by side, and what gives other items theirs.

    Each kind is centred and scaled to the same total variance, so that none drowns the others. Only train
    interactions are used.

    Args:
        dataset: items and their columns.
        features: kinds, at least one.
        seed: of the random ones.
        share_empty: items without content (a zero vector of every kind) are allowed; all of them are alike.

    Returns:
        The transform, and float32 [items, D].

    Raises:
        DataError: A column or file is missing or does not fit, or items have no content.
    """
    found = [_fit(dataset, one, seed) for one in features]
    blocks = [block for _, _, block in found]
    empty = _empty(blocks)
    if empty.size and not share_empty:
        raise DataError(
            f"{empty.size:,} of {dataset.num_items:,} items have no content, the first is"
            f" {dataset.raw_item_ids()[empty[0]]!r}; name more columns or add a feature such as {{name: spectral}},"
            " or set semantic_ids.without_content to share"
        )
    transform = FeatureTransform(tuple(_scaling(*one) for one in found))
    return transform, transform.joined(blocks)


def _empty(blocks: list[Matrix]) -> npt.NDArray[np.int64]:
    """Items int64 whose vectors of every kind are zero."""
    return np.flatnonzero(~np.column_stack([np.abs(block).sum(axis=1) > 0 for block in blocks]).any(axis=1))


def _scaling(settings: Features, text: TextSpace | None, block: Matrix) -> FittedFeatures:
    mean: Matrix = block.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = float(np.sqrt(np.square(block - mean, dtype=np.float64).sum() / max(1, len(block))))
    return FittedFeatures(settings, text, mean, np.float32(max(spread, 1e-12)))


def features_hash(directory: Path, features: tuple[Features, ...]) -> str:
    """Of the items in ``directory`` and of the files that features name, for the keys of what is made of them."""
    sources = [Path(one.source) for one in features if isinstance(one, MatrixFeatures)]
    return content_hash(directory / ITEMS, *[path for path in sources if path.is_file()])


def _fit(dataset: Catalogue, features: Features, seed: int) -> tuple[Features, TextSpace | None, Matrix]:
    """The features with the columns that are read, the space of a text, and the vectors of the items."""
    match features:
        case TextFeatures(dim=dim, min_items=least):
            named = features.model_copy(update={"columns": text_columns(dataset.items, features.columns)})
            space, block = fit_text(words(dataset.items, named.columns), dim, least, seed)
            return named, space, block
        case CollaborativeFeatures(name="spectral", dim=dim):
            draws = generator(seed, "item features", "spectral")
            return features, None, spectral_vectors(dataset.matrix("train"), dim, draws)[1]
        case CollaborativeFeatures(dim=dim):
            return features, None, fast_rp(dataset.matrix("train"), dim, generator(seed, "item features", "fast_rp"))
        case MatrixFeatures(source=source):
            return features, None, _read_matrix(Path(source), dataset.items)
        case SentenceFeatures():
            columns = text_columns(dataset.items, features.columns)
            chosen = features.model_copy(update={"columns": columns})
            return chosen, None, _sentences(dataset.items, columns, features.model)


def _in_order(features: MatrixFeatures) -> bool:
    return Path(features.source).suffix == ".npy"


def _content_vectors(features: Features, text: TextSpace | None, items: pl.DataFrame) -> Matrix:
    """Vectors of items that need not be those of the fit."""
    match features:
        case TextFeatures(columns=columns):
            assert text is not None
            return text.transform(words(items, columns))
        case CollaborativeFeatures(name=name):
            raise DataError(
                f"features {name} are of the training graph, which has no vectors of items that it did not have; use"
                " features of content: text, matrix or sentence_transformers"
            )
        case MatrixFeatures(source=source):
            if _in_order(features):
                raise DataError(
                    f"{source} has its rows in the order of one catalogue and cannot tell those of other items; use"
                    " .parquet with raw_id and vector"
                )
            return _read_matrix(Path(source), items)
        case SentenceFeatures(model=model, columns=columns):
            return _sentences(items, columns, model)


def _read_matrix(path: Path, items: pl.DataFrame) -> Matrix:
    if not path.is_file():
        raise DataError(f"semantic_ids.features.source {str(path)!r} is no file")
    if path.suffix == ".npy":
        try:
            matrix = np.load(path, allow_pickle=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is not a .npy file of numbers ({error})") from error
        if matrix.ndim != 2 or len(matrix) != items.height or matrix.dtype.kind != "f":
            raise DataError(
                f"{path} must be float [{items.height}, D], a row for each item in index order (dataset items"
                f".parquet), got {matrix.dtype} {list(matrix.shape)}; a .parquet with raw_id and vector needs no order"
            )
        found: Matrix = matrix.astype(np.float32)
    else:
        found = _read_vectors(path, items)
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: the vector of item {items['raw_id'][int(bad[0])]!r} is not finite")
    return found


def _read_vectors(path: Path, items: pl.DataFrame) -> Matrix:
    try:
        frame = pl.read_parquet(path, columns=["raw_id", "vector"], glob=False)
        frame = frame.with_columns(pl.col("raw_id").cast(pl.String)).unique("raw_id", keep="first")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} must be Parquet with columns raw_id and vector ({str(error)[:120]})") from error
    kind = frame.schema["vector"]
    if not isinstance(kind, pl.List | pl.Array) or not (kind.inner or pl.Null()).is_numeric():
        raise DataError(f"{path}: vector must be a list of numbers for each item, got {kind}")
    frame = frame.with_columns(pl.col("vector").cast(pl.List(pl.Float32)))
    joined = items.select("raw_id").join(frame, on="raw_id", how="left", maintain_order="left")
    missing = joined.filter(pl.col("vector").is_null())
    if missing.height:
        raise DataError(
            f"{path} has no vector for {missing.height:,} of {items.height:,} items, the first is"
            f" {missing['raw_id'][0]!r}"
        )
    lengths = joined["vector"].list.len().unique().to_list()
    if len(lengths) > 1:
        raise DataError(f"{path}: vectors must have one length, got {sorted(lengths)[:5]}")
    found: Matrix = np.array(joined["vector"].to_list(), dtype=np.float32)
    return found


def _sentences(items: pl.DataFrame, columns: tuple[str, ...], model: str) -> Matrix:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(
            "features sentence_transformers need the package of that name: pip install sentence-transformers,"
            " or use features: [{name: text}]"
        ) from error
    texts = [" ".join(found) for found in words(items, columns)]
    encoded: Matrix = SentenceTransformer(model, device="cpu").encode(texts, convert_to_numpy=True).astype(np.float32)
    return encoded
