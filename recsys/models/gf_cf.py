"""GF-CF: a linear and an ideal low-pass filter.

Shen et al. 2021, "How powerful is graph convolution for recommendation?", eq. 10.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from recsys.models.graph_filter import GraphFilter, ones, scaled
from recsys.truncated_svd import leading_item_vectors


def fit_gf_cf(
    train: csr_array, rank: int = 256, alpha: float = 0.3, exponent: float | None = None, *, seed: int = 0
) -> GraphFilter:
    r"""The filter of ``train`` [users, items].

    .. math:: s = x \left( \tilde R^T \tilde R + \alpha D^{-1/2} V V^T D^{1/2} \right)

    with V the ``rank`` leading right singular vectors of R~ = D_U^{-1/2} R D_I^{-1/2}.

    Args:
        train: csr [users, items].
        rank: of the ideal low-pass filter.
        alpha: its weight.
        exponent: a in ``x D^-a (R~^T R~ + alpha V V^T) D^a``, one power of the degrees for both filters as in ChebyCF;
            None for those of the paper, 0 and 1/2.
        seed: of the singular value decomposition.

    Raises:
        ValueError: ``rank`` < 1 or ``alpha`` < 0.
    """
    if not alpha >= 0:
        raise ValueError(f"GF-CF needs alpha >= 0, got {alpha}")
    history = ones(train)
    vectors, _ = leading_item_vectors(history, rank, seed=seed)
    degrees = np.bincount(history.indices, minlength=history.shape[1])
    linear, ideal = (0.0, 0.5) if exponent is None else (exponent, exponent)
    encode, decode = scaled(vectors, degrees, -ideal), scaled(np.float32(alpha) * vectors, degrees, ideal)
    return GraphFilter(history, np.array([0.5, 0.5]), 1.0, linear, encode, decode)
