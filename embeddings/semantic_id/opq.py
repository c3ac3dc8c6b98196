"""Optimised product quantisation: codes of the parts of a rotated vector, unordered (Ge et al. 2013)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from embeddings import atomic
from embeddings.id_map import IntArray
from embeddings.semantic_id.codes import Codes
from embeddings.semantic_id.kmeans import check_points, distances, kmeans, lloyd, nearest
from embeddings.spectral import Matrix

LEAST_SHARE = 1e-6
"""Variance of a direction over that of the largest one below which it is not whitened, but left out."""


@dataclasses.dataclass(frozen=True)
class ProductQuantiser:
    """The parts of ``(x - mean) R`` are coded one by one, so that digits have no order.

    Attributes:
        codebooks: float32 [m, M, D / m], the codes of each part.
        mean: float32 [D], subtracted first.
        rotation: float32 [D, D], R: orthonormal, or what whitens followed by an orthonormal matrix.
        inverse: float32 [D, D], what takes the parts back.
    """

    codebooks: Matrix
    mean: Matrix
    rotation: Matrix
    inverse: Matrix

    @property
    def widths(self) -> tuple[int, ...]:
        """Codes of each digit."""
        return (self.codebooks.shape[1],) * len(self.codebooks)

    def encode(self, vectors: Matrix) -> Codes:
        """Codes int32 [N, m] of float32 [N, D]; the way in which items that came later get theirs."""
        parts = _parts(self._rotated(vectors), len(self.codebooks))
        codes = [nearest(part, book)[0] for part, book in zip(parts, self.codebooks, strict=True)]
        return np.column_stack(codes).astype(np.int32)

    def decode(self, codes: Codes) -> Matrix:
        """Float32 [N, D] that the codes stand for."""
        decoded: Matrix = _joined(codes, self.codebooks) @ self.inverse + self.mean
        return decoded

    def last_cost(self, vectors: Matrix, codes: Codes) -> npt.NDArray[np.float32]:
        """Squared distance float32 [N, M] of the last part to each of its codes, for reassignment."""
        del codes  # a part does not depend on the others
        return distances(_parts(self._rotated(vectors), len(self.codebooks))[-1], self.codebooks[-1])

    def _rotated(self, vectors: Matrix) -> Matrix:
        if vectors.shape[1] != self.mean.size:
            raise ValueError(f"the codebooks take vectors of {self.mean.size} columns, got {vectors.shape[1]}")
        return np.asarray((vectors - self.mean) @ self.rotation, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write ``path`` as safetensors, atomically."""
        tensors = {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in dataclasses.fields(self)}
        atomic.write_bytes(path, safetensors.numpy.save(tensors))

    @classmethod
    def load(cls, path: Path) -> ProductQuantiser:
        """Read what :meth:`save` wrote."""
        return cls(**safetensors.numpy.load_file(path))


def fit_opq(
    vectors: Matrix,
    digits: int,
    width: int,
    generator: np.random.Generator,
    *,
    passes: int = 10,
    whitened: bool = False,
) -> tuple[ProductQuantiser, Codes]:
    """Optimised product quantisation (Ge et al. 2013, "Optimized product quantization for approximate NN search").

    The parts start with principal directions so shared out that the variances of the parts have like products (the
    parametric solution, section 3.2). Then codes, centres and rotation are improved in turn (section 3.1, eq. 8): the
    rotation by an orthogonal Procrustes problem. An orthonormal rotation leaves no larger error than it started from.

    Args:
        vectors: float32 [N, D], one for each item; N >= ``width``.
        digits: m, parts of a vector; must divide D.
        width: M, codes of a part.
        generator: draws the starts of the k-means.
        passes: improvements of the rotation; 0 leaves the parametric one.
        whitened: scale the principal directions to variance 1 first, as RPG does, so that all digits tell as much.

    Returns:
        The quantiser, and the codes int32 [N, m] that its :meth:`ProductQuantiser.encode` gives the items.

    Raises:
        ValueError: The parts do not divide the columns, there are fewer items than codes, or a vector is not finite.
    """
    if vectors.shape[1] % digits:
        raise ValueError(
            f"opq must divide the features into parts of equal width, got {vectors.shape[1]} columns for {digits}"
            " digits; change the features' dim or the digits"
        )
    check_points(vectors, width)
    mean: Matrix = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    start, inverse = _principal(vectors - mean, digits, whitened=whitened)
    prepared = np.ascontiguousarray((vectors - mean) @ start, dtype=np.float32)
    turn: Matrix = np.eye(len(start), dtype=np.float32)
    books, codes = _stacked([kmeans(part, width, generator) for part in _parts(prepared, digits)])
    for _ in range(passes):
        left, _, right = np.linalg.svd(prepared.T.astype(np.float64) @ _joined(codes, books))
        turn = (left @ right).astype(np.float32)
        parts = _parts(prepared @ turn, digits)
        books, codes = _stacked([lloyd(part, book, 1)[:2] for part, book in zip(parts, books, strict=True)])
    quantiser = ProductQuantiser(books, mean, start @ turn, turn.T @ inverse)
    return quantiser, quantiser.encode(vectors)


def _principal(centred: Matrix, digits: int, *, whitened: bool) -> tuple[Matrix, Matrix]:
    """Principal directions [D, D] of float32 [N, D] as columns, in the order of the parts, and their inverse.

    A direction goes to the part whose variances have the smallest product so far and that still has a place.
    """
    covariance = centred.T.astype(np.float64) @ centred / max(1, len(centred))
    variances, directions = np.linalg.eigh(covariance)
    least = max(LEAST_SHARE * variances.max(), np.finfo(np.float64).tiny)
    factors = np.log(np.maximum(variances / least, 1))  # at least 0: what is added makes no product smaller
    room = np.full(digits, len(variances) // digits)
    product = np.zeros(digits)
    members: list[list[int]] = [[] for _ in range(digits)]
    for direction in np.argsort(-variances, kind="stable"):
        part = int(np.argmin(np.where(room > 0, product, np.inf)))
        members[part].append(int(direction))
        room[part] -= 1
        product[part] += factors[direction]
    order = [direction for part in members for direction in part]
    scale = np.ones(len(order))
    if whitened:
        scale = np.where(variances[order] > least, 1 / np.sqrt(np.maximum(variances[order], least)), 0)
    back = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return (directions[:, order] * scale).astype(np.float32), (directions[:, order] * back).T.astype(np.float32)


def _parts(vectors: Matrix, digits: int) -> list[Matrix]:
    return [np.ascontiguousarray(part) for part in np.split(vectors, digits, axis=1)]


def _stacked(found: list[tuple[Matrix, IntArray]]) -> tuple[Matrix, Codes]:
    """Codebooks [m, M, D / m] and codes [N, m] of the parts' centres and codes."""
    return np.stack([book for book, _ in found]), np.column_stack([code for _, code in found]).astype(np.int32)


def _joined(codes: Codes, books: Matrix) -> Matrix:
    return np.concatenate([book[codes[:, digit]] for digit, book in enumerate(books)], axis=1)
