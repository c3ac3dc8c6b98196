"""BSPM: a graph filter that first blurs, then sharpens (Choi et al. 2023, "Blurring-sharpening process models")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy.sparse import csr_array

from recsys.models.graph_filter import GraphFilter, ones, scaled
from recsys.truncated_svd import Floats, Normalised, leading_item_vectors


def fit_bspm(
    train: csr_array,
    rank: int = 256,
    beta: float = 0.3,
    sharpening: float = 2.5,
    steps: int = 1,
    *,
    seed: int = 0,
) -> GraphFilter:
    r"""The early-merge model of ``train`` [users, items].

    .. math:: s = \left( x A + \beta\, x D^{-1/2} V V^T D^{1/2} \right) p(A), \quad A = \tilde R^T \tilde R

    Blurring is one Euler step of dB/dt = B (A - I) for unit time, plus the ideal filter; sharpening solves
    dS/dt = -S A for the time ``sharpening`` by ``steps`` steps of the classical Runge-Kutta method (eq. 8-13), whose
    step of length h multiplies by :math:`1 - z + z^2/2 - z^3/6 + z^4/24` with z = h A.

    Args:
        train: csr [users, items].
        rank: of the ideal low-pass filter.
        beta: its weight.
        sharpening: T_s, how long the result is sharpened; 0 is GF-CF.
        steps: K_s, of the solver.
        seed: of the singular value decomposition.

    Raises:
        ValueError: ``rank`` or ``steps`` < 1, or ``beta`` or ``sharpening`` < 0.
    """
    if steps < 1 or not beta >= 0 or not sharpening >= 0:
        raise ValueError(f"BSPM needs steps >= 1, beta and sharpening >= 0, got {steps}, {beta} and {sharpening}")
    history = ones(train)
    vectors, _ = leading_item_vectors(history, rank, seed=seed)
    degrees = np.bincount(history.indices, minlength=history.shape[1])
    sharpen = sharpening_polynomial(sharpening, steps)
    decode = _filtered(Normalised(history), scaled(np.float32(beta) * vectors, degrees, 0.5), sharpen)
    coefficients = np.asarray(chebyshev.chebmul([0.5, 0.5], sharpen), np.float64)  # times A = (T_0 + T_1) / 2
    return GraphFilter(history, coefficients, 1.0, 0.0, scaled(vectors, degrees, -0.5), decode)


def sharpening_polynomial(time: float, steps: int) -> npt.NDArray[np.float64]:
    """What ``steps`` Runge-Kutta steps of dS/dt = -S A for ``time`` multiply S by: Chebyshev on [0, 1].

    It is interpolated at Chebyshev nodes; powers of A would have coefficients that cancel.

    Returns:
        float64 [4 steps + 1].
    """
    nodes = chebyshev.chebpts1(4 * steps + 1)
    z = (nodes + 1) / 2 * (time / steps)
    factors = (1 - z + z**2 / 2 - z**3 / 6 + z**4 / 24) ** steps
    return np.asarray(chebyshev.chebfit(nodes, factors, 4 * steps))


def _filtered(operator: Normalised, columns: Floats, coefficients: npt.NDArray[np.float64]) -> Floats:
    """``p(A) columns``, p Chebyshev on [0, 1] with at least two coefficients."""
    before, now = columns, 2 * operator(columns) - columns
    total = np.float32(coefficients[0]) * before + np.float32(coefficients[1]) * now
    for factor in coefficients[2:]:
        image = operator(now)
        image *= np.float32(4)
        image -= 2 * now
        image -= before
        before, now = now, image
        total += np.float32(factor) * now
    return np.asarray(total)
