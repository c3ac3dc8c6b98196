"""What is known about items, as vectors: text, the training graph, or a matrix of the user's."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_array, diags_array

from embeddings.semantic_id.collaborative import fast_rp
from embeddings.spectral import spectral_vectors
from pipelines.cache import content_hash
from pipelines.config_semantic import (
    CollaborativeFeatures,
    Features,
    MatrixFeatures,
    SentenceFeatures,
    TextFeatures,
)
from pipelines.dataset import ITEMS
from pipelines.errors import DataError, did_you_mean
from recsys.rng import generator
from recsys.truncated_svd import leading_gram_vectors

Matrix = npt.NDArray[np.float32]


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


_WORD = re.compile(r"\w+")


def item_features(
    dataset: Catalogue, features: tuple[Features, ...], seed: int, *, share_empty: bool = False
) -> Matrix:
    """Vectors of all items, the kinds of features side by side.

    Each kind is centred and scaled to the same total variance, so that none drowns the others. Only train
    interactions are used.

    Args:
        dataset: items and their columns.
        features: kinds, at least one.
        seed: of the random ones.
        share_empty: items without content (a zero vector of every kind) are allowed; all of them are alike.

    Returns:
        float32 [items, D].

    Raises:
        DataError: A column or file is missing or does not fit, or items have no content.
    """
    blocks = [_block(dataset, one, seed) for one in features]
    empty = np.flatnonzero(~np.column_stack([np.abs(block).sum(axis=1) > 0 for block in blocks]).any(axis=1))
    if empty.size and not share_empty:
        raise DataError(
            f"{empty.size:,} of {dataset.num_items:,} items have no content, the first is"
            f" {dataset.raw_item_ids()[empty[0]]!r}; name more columns or add a feature such as {{name: spectral}},"
            " or set semantic_ids.without_content to share"
        )
    scaled = []
    for block in blocks:
        centred = block - block.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = float(np.sqrt(np.square(centred, dtype=np.float64).sum() / max(1, len(block))))
        scaled.append(centred / np.float32(max(spread, 1e-12)))
    return np.ascontiguousarray(np.concatenate(scaled, axis=1), dtype=np.float32)


def features_hash(directory: Path, features: tuple[Features, ...]) -> str:
    """Of the items in ``directory`` and of the files that features name, for the keys of what is made of them."""
    sources = [Path(one.source) for one in features if isinstance(one, MatrixFeatures)]
    return content_hash(directory / ITEMS, *[path for path in sources if path.is_file()])


def _block(dataset: Catalogue, features: Features, seed: int) -> Matrix:
    match features:
        case TextFeatures(columns=columns, dim=dim, min_items=least):
            return _text(words(dataset.items, columns), dim, least, seed)
        case CollaborativeFeatures(name="spectral", dim=dim):
            return spectral_vectors(dataset.matrix("train"), dim, generator(seed, "item features", "spectral"))[1]
        case CollaborativeFeatures(dim=dim):
            return fast_rp(dataset.matrix("train"), dim, generator(seed, "item features", "fast_rp"))
        case MatrixFeatures(source=source):
            return _read_matrix(Path(source), dataset)
        case SentenceFeatures(model=model, columns=columns):
            return _sentences(dataset, columns, model)


def words(items: pl.DataFrame, columns: tuple[str, ...] = ()) -> list[list[str]]:
    """Lower-case words of each item; an entry of a list is a word as a whole too, and a category a ``column=value``.

    Args:
        items: one row for each item.
        columns: text, category or list of text; none means all of these kinds but ``raw_id``.

    Raises:
        DataError: There is no such column, or no column has text.
    """
    textual = [n for n, kind in items.schema.items() if n != "raw_id" and kind in (pl.String, pl.List(pl.String))]
    for name in columns:
        if name not in textual:
            raise DataError(f"items have no text or list column {name!r}; {did_you_mean(name, textual)}")
    chosen = columns or tuple(textual)
    if not chosen:
        raise DataError(
            "items have no text, category or list column; name them in dataset.items.features, or use"
            " semantic_ids.features: [{name: spectral}]"
        )
    found: list[list[str]] = [[] for _ in range(items.height)]
    for name in chosen:
        for item, value in enumerate(items[name].to_list()):
            entries = [value] if isinstance(value, str) else value or []
            for entry in entries:
                if entry:
                    found[item] += [f"{name}={entry.lower()}", *_WORD.findall(entry.lower())]
    return found


def tf_idf(documents: list[list[str]], min_items: int) -> csr_array:
    """``(1 + log tf) (1 + log((1 + N) / (1 + df)))``, rows of length one (scikit-learn's, with ``sublinear_tf``).

    Args:
        documents: words of N items.
        min_items: words of fewer items are left out.

    Returns:
        float32 [N, words], the words in alphabetical order.
    """
    counts = [collections.Counter(words_of_item) for words_of_item in documents]
    frequency = collections.Counter(word for one in counts for word in one)
    vocabulary = sorted(word for word, count in frequency.items() if count >= min_items)
    place = {word: column for column, word in enumerate(vocabulary)}
    cells = [(row, place[word], n) for row, one in enumerate(counts) for word, n in one.items() if word in place]
    rows, columns, times = np.array(cells, dtype=np.int64).reshape(-1, 3).T
    inverse = 1 + np.log((1 + len(documents)) / (1 + np.array([frequency[word] for word in vocabulary])))
    values = (1 + np.log(times)) * inverse[columns]
    matrix = csr_array((values, (rows, columns)), shape=(len(documents), len(vocabulary)))
    norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=1)))
    return csr_array(diags_array(1 / np.maximum(norms, 1e-12)) @ matrix).astype(np.float32)


def _text(documents: list[list[str]], dim: int, min_items: int, seed: int) -> Matrix:
    matrix = tf_idf(documents, min_items)
    if matrix.nnz == 0:
        raise DataError(f"no word occurs in {min_items} items or more; lower min_items, or use other features")
    vectors, _ = leading_gram_vectors(matrix, min(dim, *matrix.shape), seed=seed)
    found: Matrix = np.asarray(matrix @ vectors, dtype=np.float32)
    return found


def _read_matrix(path: Path, dataset: Catalogue) -> Matrix:
    if not path.is_file():
        raise DataError(f"semantic_ids.features.source {str(path)!r} is no file")
    if path.suffix == ".npy":
        try:
            matrix = np.load(path, allow_pickle=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is not a .npy file of numbers ({error})") from error
        if matrix.ndim != 2 or len(matrix) != dataset.num_items or matrix.dtype.kind != "f":
            raise DataError(
                f"{path} must be float [{dataset.num_items}, D], a row for each item in index order (dataset items"
                f".parquet), got {matrix.dtype} {list(matrix.shape)}; a .parquet with raw_id and vector needs no order"
            )
        found: Matrix = matrix.astype(np.float32)
    else:
        found = _read_vectors(path, dataset)
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: the vector of item {dataset.raw_item_ids()[bad[0]]!r} is not finite")
    return found


def _read_vectors(path: Path, dataset: Catalogue) -> Matrix:
    try:
        frame = pl.read_parquet(path, columns=["raw_id", "vector"], glob=False)
        frame = frame.with_columns(pl.col("raw_id").cast(pl.String)).unique("raw_id", keep="first")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} must be Parquet with columns raw_id and vector ({str(error)[:120]})") from error
    kind = frame.schema["vector"]
    if not isinstance(kind, pl.List | pl.Array) or not (kind.inner or pl.Null()).is_numeric():
        raise DataError(f"{path}: vector must be a list of numbers for each item, got {kind}")
    frame = frame.with_columns(pl.col("vector").cast(pl.List(pl.Float32)))
    joined = dataset.items.select("raw_id").join(frame, on="raw_id", how="left", maintain_order="left")
    missing = joined.filter(pl.col("vector").is_null())
    if missing.height:
        raise DataError(
            f"{path} has no vector for {missing.height:,} of {dataset.num_items:,} items, the first is"
            f" {missing['raw_id'][0]!r}"
        )
    lengths = joined["vector"].list.len().unique().to_list()
    if len(lengths) > 1:
        raise DataError(f"{path}: vectors must have one length, got {sorted(lengths)[:5]}")
    found: Matrix = np.array(joined["vector"].to_list(), dtype=np.float32)
    return found


def _sentences(dataset: Catalogue, columns: tuple[str, ...], model: str) -> Matrix:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(
            "features sentence_transformers need the package of that name: pip install sentence-transformers,"
            " or use features: [{name: text}]"
        ) from error
    texts = [" ".join(found) for found in words(dataset.items, columns)]
    encoded: Matrix = SentenceTransformer(model, device="cpu").encode(texts, convert_to_numpy=True).astype(np.float32)
    return encoded
