"""Residual quantisation: each level codes what the levels before it left (Chen et al. 2010; RQ-KMeans, balanced)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from embeddings import atomic
from embeddings.semantic_id.codes import Codes
from embeddings.semantic_id.kmeans import balanced_kmeans, distances, kmeans, nearest
from embeddings.spectral import Matrix


@dataclasses.dataclass(frozen=True)
class ResidualQuantiser:
    """Codebooks ``e^1 .. e^L``: a vector is coded greedily and is about ``sum_l e^l_{c_l}``.

    Attributes:
        codebooks: float32 [widths[l], D] of each level.
        mean: float32 [D], subtracted first.
        normalised: whether residuals are scaled to length one before each level (GRID's RK-means).
    """

    codebooks: tuple[Matrix, ...]
    mean: Matrix
    normalised: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(book) for book in self.codebooks)

    def encode(self, vectors: Matrix) -> Codes:
        """Codes int32 [N, L] of float32 [N, D]; the way in which items that came later get theirs."""
        left, codes = self._start(vectors), []
        for book in self.codebooks:
            left = _unit(left) if self.normalised else left
            code, _ = nearest(left, book)
            left = left - book[code]
            codes.append(code)
        return np.column_stack(codes).astype(np.int32)

    def last_cost(self, vectors: Matrix, codes: Codes) -> npt.NDArray[np.float32]:
        """Squared distance float32 [N, widths[-1]] of the last residual to each last code, for reassignment."""
        left = self._start(vectors)
        for level, book in enumerate(self.codebooks):
            left = _unit(left) if self.normalised else left
            if level < len(self.codebooks) - 1:
                left = left - book[codes[:, level]]
        return distances(left, self.codebooks[-1])

    def decode(self, codes: Codes) -> Matrix:
        """Float32 [N, D] that the codes stand for; with normalised residuals only the direction has a meaning."""
        total: Matrix = self.mean + sum(book[codes[:, level]] for level, book in enumerate(self.codebooks))
        return total

    def _start(self, vectors: Matrix) -> Matrix:
        if vectors.shape[1] != self.mean.size:
            raise ValueError(f"the codebooks take vectors of {self.mean.size} columns, got {vectors.shape[1]}")
        left: Matrix = np.ascontiguousarray(vectors - self.mean, dtype=np.float32)
        return left

    def save(self, path: Path) -> None:
        """Write ``path`` as safetensors, atomically."""
        tensors = {f"codebook_{level}": book for level, book in enumerate(self.codebooks)} | {"mean": self.mean}
        facts = {"normalised": self.normalised, "levels": len(self.codebooks)}
        header = {"residual_quantiser": json.dumps(facts)}  # keys would come in any order, and files must be equal
        atomic.write_bytes(path, safetensors.numpy.save(tensors, metadata=header))

    @classmethod
    def load(cls, path: Path) -> ResidualQuantiser:
        """Read what :meth:`save` wrote."""
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["residual_quantiser"])
            books = tuple(file.get_tensor(f"codebook_{level}") for level in range(facts["levels"]))
            return cls(books, file.get_tensor("mean"), facts["normalised"])


def fit_residual(
    vectors: Matrix,
    widths: tuple[int, ...],
    generator: np.random.Generator,
    *,
    balanced: bool = False,
    normalised: bool = False,
) -> tuple[ResidualQuantiser, Codes]:
    """RQ-KMeans: k-means on the vectors, then on the residuals, and so on.

    Args:
        vectors: float32 [N, D], one for each item; N >= each width.
        widths: codes of each level.
        generator: draws the starts.
        balanced: clusters of N / K items each, see :func:`embeddings.semantic_id.kmeans.balanced_kmeans`.
        normalised: scale residuals to length one before each level.

    Returns:
        The codebooks, and the codes int32 [N, L] of the items: those that :meth:`ResidualQuantiser.encode` gives,
        but balanced ones where asked for.

    Raises:
        ValueError: There are fewer items than codes in a level, or a vector is not finite.
    """
    mean: Matrix = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    left: Matrix = np.ascontiguousarray(vectors - mean, dtype=np.float32)
    books, codes = [], []
    for width in widths:
        left = _unit(left) if normalised else left
        book, code = (balanced_kmeans if balanced else kmeans)(left, width, generator)
        left = left - book[code]
        books.append(book)
        codes.append(code)
    return ResidualQuantiser(tuple(books), mean, normalised), np.column_stack(codes).astype(np.int32)


def _unit(vectors: Matrix) -> Matrix:
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    unit: Matrix = vectors / np.maximum(norms, np.float32(1e-12))
    return unit
