"""BSPM: a graph filter that first blurs, then sharpens (Choi et al. 2023, "Blurring-sharpening process models")."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Polynomial, chebyshev
from scipy.sparse import csr_array

from recsys.models.graph_filter import GraphFilter, ones, scaled
from recsys.truncated_svd import Normalised, leading_item_vectors


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
    decode = np.zeros_like(vectors)
    operator, power = Normalised(history), scaled(np.float32(beta) * vectors, degrees, 0.5)
    for factor in sharpen.coef:
        decode += np.float32(factor) * power
        power = operator(power)
    filtered: Polynomial = (sharpen * Polynomial([0, 1]))(Polynomial([0.5, 0.5]))
    coefficients = np.asarray(chebyshev.poly2cheb(filtered.coef), np.float64)
    return GraphFilter(history, coefficients, 1.0, 0.0, scaled(vectors, degrees, -0.5), decode)


def sharpening_polynomial(time: float, steps: int) -> Polynomial:
    """What ``steps`` Runge-Kutta steps of dS/dt = -S A for ``time`` multiply S by, as a polynomial in A."""
    z = Polynomial([0, time / steps])
    step: Polynomial = 1 - z + z**2 / 2 - z**3 / 6 + z**4 / 24
    return step**steps
