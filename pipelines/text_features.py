"""Text of items as vectors: TF-IDF of words, then the leading singular space of the catalogue that it is fitted on."""

from __future__ import annotations

import collections
import dataclasses
import re

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_array, diags_array

from embeddings.spectral import Matrix
from pipelines.errors import DataError, did_you_mean
from recsys.truncated_svd import leading_gram_vectors

Floats = npt.NDArray[np.float64]
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class TextSpace:
    """What text is turned into vectors by.

    Attributes:
        vocabulary: V words in alphabetical order; others are not read.
        inverse: float64 [V], the inverse frequency of each.
        basis: float32 [V, D], orthonormal columns.
    """

    vocabulary: tuple[str, ...]
    inverse: Floats
    basis: Matrix

    def transform(self, documents: list[list[str]]) -> Matrix:
        """Vectors float32 [N, D] of the words of N items; zero for an item without a word of the vocabulary."""
        return self.project(tf_idf(documents, self.vocabulary, self.inverse))

    def project(self, weights: csr_array) -> Matrix:
        """The same of csr [N, V] of :func:`tf_idf`."""
        found: Matrix = np.asarray(weights @ self.basis, dtype=np.float32)
        return found


def fit_text(documents: list[list[str]], dim: int, min_items: int, seed: int) -> tuple[TextSpace, Matrix]:
    """The space of the words of N items, and their vectors float32 [N, D], D <= dim.

    Raises:
        DataError: No word occurs in ``min_items`` items.
    """
    words_of_all, inverse = vocabulary(documents, min_items)
    weights = tf_idf(documents, words_of_all, inverse)
    if weights.nnz == 0:
        raise DataError(f"no word occurs in {min_items} items or more; lower min_items, or use other features")
    basis, _ = leading_gram_vectors(weights, min(dim, *weights.shape), seed=seed)
    space = TextSpace(words_of_all, inverse, basis)
    return space, space.project(weights)


def text_columns(items: pl.DataFrame, columns: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The columns that are read: those named, or all of text, category and list kind but ``raw_id``.

    Raises:
        DataError: There is no such column, or no column has text.
    """
    textual = [n for n, kind in items.schema.items() if n != "raw_id" and kind in (pl.String, pl.List(pl.String))]
    for name in columns:
        if name not in textual:
            raise DataError(f"items have no text or list column {name!r}; {did_you_mean(name, textual)}")
    if not textual:
        raise DataError(
            "items have no text, category or list column; name them in dataset.items.features, or use"
            " semantic_ids.features: [{name: spectral}]"
        )
    return columns or tuple(textual)


def words(items: pl.DataFrame, columns: tuple[str, ...] = ()) -> list[list[str]]:
    """Lower-case words of each item; an entry of a list is a word as a whole too, and a category a ``column=value``.

    Args:
        items: one row for each item.
        columns: see :func:`text_columns`, whose errors are raised.
    """
    found: list[list[str]] = [[] for _ in range(items.height)]
    for name in text_columns(items, columns):
        for item, value in enumerate(items[name].to_list()):
            entries = [value] if isinstance(value, str) else value or []
            for entry in entries:
                if entry:
                    found[item] += [f"{name}={entry.lower()}", *_WORD.findall(entry.lower())]
    return found


def vocabulary(documents: list[list[str]], min_items: int) -> tuple[tuple[str, ...], Floats]:
    """The words of at least ``min_items`` of N items in alphabetical order, and ``1 + log((1 + N) / (1 + df))``."""
    frequency = collections.Counter(word for one in documents for word in set(one))
    kept = tuple(sorted(word for word, count in frequency.items() if count >= min_items))
    return kept, 1 + np.log((1 + len(documents)) / (1 + np.array([frequency[word] for word in kept])))


def tf_idf(documents: list[list[str]], vocabulary: tuple[str, ...], inverse: Floats) -> csr_array:
    """``(1 + log tf) idf``, rows of length one (scikit-learn's, with ``sublinear_tf``).

    Args:
        documents: words of N items; those outside the vocabulary are left out.
        vocabulary: of the columns.
        inverse: float64, the inverse frequency of each.

    Returns:
        float32 [N, words].
    """
    counts = [collections.Counter(words_of_item) for words_of_item in documents]
    place = {word: column for column, word in enumerate(vocabulary)}
    cells = [(row, place[word], n) for row, one in enumerate(counts) for word, n in one.items() if word in place]
    rows, columns, times = np.array(cells, dtype=np.int64).reshape(-1, 3).T
    values = (1 + np.log(times)) * inverse[columns]
    matrix = csr_array((values, (rows, columns)), shape=(len(documents), len(vocabulary)))
    norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=1)))
    return csr_array(diags_array(1 / np.maximum(norms, 1e-12)) @ matrix).astype(np.float32)
