"""ChebyCF: a Chebyshev filter with a plateau and an ideal low-pass filter (Kim et al. 2025, SIGIR)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy.sparse import csr_array

from recsys.models.graph_filter import GraphFilter, ones, scaled
from recsys.truncated_svd import leading_item_vectors

_ACCURACY = 1e-4
_LARGEST_TERMS = 100.0  # of the filter's largest value; times the rounding of float32 it is below the accuracy
_WIDER = 1.25
_ROUNDS = 4  # the polynomial is replaced on each of the vectors, which must be accurate for that


def fit_cheby_cf(
    train: csr_array,
    order: int = 8,
    flatness: float = 1.5,
    rank: int = 512,
    alpha: float = 0.2,
    exponent: float = 0.4,
    *,
    seed: int = 0,
) -> GraphFilter:
    r"""The filter of ``train`` [users, items].

    .. math:: s = x D^{-a} \left( \sum_{k=0}^K c_k T_k(L) + \alpha V V^T \right) D^{a},
        \quad L = I - 2 \tilde R^T \tilde R

    On the span of V the polynomial is applied by its values at the singular values; off it the eigenvalues are
    smaller than the last of them, c, and on [0, c] a polynomial of lower degree has the same values to 1e-4 of the
    largest. So it costs fewer propagations than K. At V it takes values that the rank-r term takes back; where these
    would be so large that float32 cannot, as for high orders, the interval is made wider, at most the whole one.

    Args:
        train: csr [users, items].
        order: K.
        flatness: exponent of :func:`plateau`.
        rank: columns of V.
        alpha: weight of the ideal filter.
        exponent: a, of the degrees.
        seed: of the singular value decomposition.

    Raises:
        ValueError: ``order`` or ``rank`` < 1, or ``flatness`` or ``alpha`` < 0.
    """
    if order < 1 or not flatness >= 0 or not alpha >= 0:
        raise ValueError(f"ChebyCF needs order >= 1, flatness and alpha >= 0, got {order}, {flatness} and {alpha}")
    history = ones(train)
    vectors, values = leading_item_vectors(history, rank, rounds=_ROUNDS, seed=seed)
    coefficients = plateau(order, flatness)
    coefficients[1::2] *= -1  # T_k(-t) = (-1)^k T_k(t): from L = 1 - 2 lambda to t = 2 lambda - 1
    return deflated(history, coefficients, (vectors, values), alpha=alpha, exponent=exponent)


def plateau(order: int, flatness: float) -> npt.NDArray[np.float64]:
    """Coefficients float64 [order + 1] of T_k(L) for the transfer function ``1/2 - sign(x) |x|^flatness / 2``.

    As published the function is sampled at the extrema ``x_j = cos((K - j) pi / K)``, but summed with the discrete
    orthogonality of the K + 1 roots ``cos((K - j + 1/2) pi / (K + 1))``.
    """
    steps = np.arange(order, -1, -1)
    places = np.cos(steps * np.pi / order)
    targets = 0.5 - 0.5 * np.sign(places) * np.abs(places) ** flatness
    angles = (steps + 0.5) * np.pi / (order + 1)
    coefficients = 2 / (order + 1) * np.cos(np.outer(np.arange(order + 1), angles)) @ targets
    coefficients[0] /= 2
    return np.asarray(coefficients)


def deflated(
    history: csr_array,
    coefficients: npt.NDArray[np.float64],
    spectrum: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    *,
    alpha: float,
    exponent: float,
    accuracy: float = _ACCURACY,
) -> GraphFilter:
    """The filter ``p(A) + alpha V V^T`` with as few propagations as ``accuracy`` allows.

    Args:
        history: csr float32 [users, items].
        coefficients: of p, Chebyshev on [0, 1].
        spectrum: V [items, r] and the eigenvalues of A = R~^T R~ [r], falling.
        alpha: weight of the ideal filter.
        exponent: of the degrees.
        accuracy: largest error on the rest of the spectrum, as a share of the largest value of p.
    """
    vectors, values = spectrum
    cheaper, end = _shortest(coefficients, values, accuracy)
    exact = chebyshev.chebval(2 * values.astype(np.float64) - 1, coefficients)
    done = chebyshev.chebval(2 * values.astype(np.float64) / end - 1, cheaper)
    degrees = np.bincount(history.indices, minlength=history.shape[1])
    gains = (exact - done + alpha).astype(np.float32)
    encode, decode = scaled(vectors, degrees, -exponent), scaled(vectors * gains, degrees, exponent)
    return GraphFilter(history, cheaper, end, exponent, encode, decode)


def _shortest(
    coefficients: npt.NDArray[np.float64], values: npt.NDArray[np.float32], accuracy: float
) -> tuple[npt.NDArray[np.float64], float]:
    """The polynomial on the rest of the spectrum, and the end of its interval; ``values`` are its leading part."""
    end = min(1.0, max(float(values[-1]) * 1.05, 1e-3)) if len(values) else 1.0
    while True:
        cheaper = economised(coefficients, end, accuracy)
        farthest = max(2 * float(values[0]) / end - 1, 1.0) if len(values) else 1.0
        terms = float(chebyshev.chebval(farthest, np.abs(cheaper)))
        if end == 1.0 or terms <= _LARGEST_TERMS * _size(coefficients):
            return cheaper, end
        end = min(1.0, end * _WIDER)


def economised(coefficients: npt.NDArray[np.float64], end: float, accuracy: float) -> npt.NDArray[np.float64]:
    """The polynomial on [0, 1] as one on [0, end], without the highest terms that together are below the accuracy."""
    order = len(coefficients) - 1
    nodes = chebyshev.chebpts1(order + 1)
    whole = chebyshev.chebfit(nodes, chebyshev.chebval((nodes + 1) * end - 1, coefficients), order)
    tails = np.cumsum(np.abs(whole[::-1]))[::-1]
    kept = max(2, int((tails > accuracy * _size(coefficients)).sum()))
    return np.asarray(whole[:kept])


def _size(coefficients: npt.NDArray[np.float64]) -> float:
    """Largest value of the polynomial."""
    return max(float(np.abs(chebyshev.chebval(np.linspace(-1, 1, 1001), coefficients)).max()), 1e-12)
