from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.sparse_product import SparseMatrix, sparse_product


@pytest.mark.parametrize("wanted", [None, [4, 0], []])
def test_values_and_gradients_are_those_of_the_dense_product(wanted: list[int] | None) -> None:
    """Entries that share a place add up; row 2 and column 1 are empty."""
    rows, columns = np.array([0, 0, 1, 3, 3, 4]), np.array([0, 2, 3, 0, 0, 2])
    weights = np.array([1.0, -2.0, 0.5, 3.0, 1.0, 0.25], np.float32)
    matrix = SparseMatrix.of(rows, columns, weights, (5, 4))
    places = torch.from_numpy(rows), torch.from_numpy(columns)
    dense = torch.zeros(5, 4).index_put_(places, torch.from_numpy(weights), accumulate=True)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32))
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    at = None if wanted is None else np.array(wanted, np.int64)
    ours, theirs = sparse_product(matrix, one, at), (dense @ two if at is None else (dense @ two)[at])
    torch.testing.assert_close(ours, theirs)
    weight = torch.arange(ours.numel()).reshape(ours.shape).float()
    (ours * weight).sum().backward()  # type: ignore[no-untyped-call]
    (theirs * weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(one.grad, two.grad)
