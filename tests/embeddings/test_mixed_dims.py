"""Soft selection against its equations, written with plain tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.mixed_dims import SoftSelection, frequency_blocks, row_counts
from embeddings.tables import OptimizerSpec, look_up
from embeddings.tables.sparse_table import prune

IDS, ROWS, DIM, BLOCKS = 40, 21, 6, 3


def new_table(**changes: float) -> SoftSelection:
    rng = np.random.default_rng(1)
    id_map = IdMap(rng.integers(0, ROWS - 1, (IDS, 2)), ROWS, ROWS - 1, "test")
    blocks = np.arange(ROWS) % BLOCKS
    table = SoftSelection(
        id_map, DIM, OptimizerSpec("sgd", lr=0.5), blocks, init_std=1.0, generator=np.random.default_rng(2), **changes
    )
    with torch.no_grad():
        table.alpha.copy_(torch.from_numpy(rng.random((BLOCKS, DIM), np.float32)))
    return table


def expected(rows: torch.Tensor, alpha: torch.Tensor, table: SoftSelection, ids: torch.Tensor) -> torch.Tensor:
    product = rows * alpha[torch.arange(ROWS) % BLOCKS]
    return product[torch.from_numpy(table.id_map.lookup(ids.numpy()))].sum(1)


def test_vectors_are_products() -> None:
    table, ids = new_table(), torch.tensor([3, 0, 3, 39])
    wanted = expected(table.rows.weight(), table.alpha.detach(), table, ids)
    torch.testing.assert_close(table(ids), wanted)
    torch.testing.assert_close(look_up([table, table], [ids, ids])[1], wanted)
    torch.testing.assert_close(table.vectors(ids), wanted)
    bags = table(ids, torch.tensor([0, 3, 3, 4]))
    torch.testing.assert_close(bags, torch.stack([wanted[:3].sum(0), torch.zeros(DIM), wanted[3]]))
    single = SoftSelection(
        IdMap(np.arange(4)[:, None], 5, 4, "full"), 3, OptimizerSpec("sgd"), np.zeros(5, np.int64), init_std=1.0,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    torch.testing.assert_close(single(torch.tensor([2, 9])), single.rows.weight()[[2, 4]])


def test_rows_learn_the_gradient_times_alpha_and_alpha_stays() -> None:
    table, ids = new_table(), torch.tensor([3, 0, 3])
    rows, alpha = table.rows.weight().clone().requires_grad_(), table.alpha.detach().clone()
    expected(rows, alpha, table, ids).square().sum().backward()
    assert rows.grad is not None
    table(ids).square().sum().backward()
    table.step()
    torch.testing.assert_close(table.rows.weight(), rows.detach() - 0.5 * rows.grad)
    assert torch.equal(table.alpha.detach(), alpha)


def test_alpha_follows_its_normalised_gradient_and_the_rows_stay() -> None:
    table, ids = new_table(alpha_lr=0.3, alpha_l1=0.05), torch.tensor([3, 0, 3, 17])
    rows, alpha = table.rows.weight().clone(), table.alpha.detach().clone().requires_grad_()
    expected(rows, alpha, table, ids).square().sum().backward()
    g = alpha.grad
    assert g is not None
    table.learns = "alpha"
    table(ids).square().sum().backward()
    table.step()
    wanted = alpha.detach() - 0.3 * (g / g.abs().mean(1, keepdim=True) + 0.05)
    assert (wanted < 0).any(), "the bound is tested"
    torch.testing.assert_close(table.alpha.detach(), wanted.clamp(0, 1))
    assert torch.equal(table.rows.weight(), rows)
    table.step()
    torch.testing.assert_close(table.alpha.detach(), wanted.clamp(0, 1), msg="a step without a gradient does nothing")


def test_a_block_without_gradient_only_pays_the_penalty() -> None:
    table = new_table(alpha_lr=0.1, alpha_l1=0.5)
    before = table.alpha.detach().clone()
    table.learns = "alpha"
    table(torch.tensor([3])).mul(0.0).sum().backward()
    table.step()
    torch.testing.assert_close(table.alpha.detach(), (before - 0.05).clamp(0, 1))


def test_pruning_is_on_the_product() -> None:
    table = new_table()
    with torch.no_grad():
        table.alpha[:, 0] = 0.0
        table.rows.weight()[:, 0] = 100.0
    pruned = prune(table, 0.3, table.optimizer)
    assert not pruned.stored()[:, 0].any(), "large rows do not save a column that is not selected"
    assert pruned.nnz == round(0.3 * ROWS * DIM)
    assert torch.equal(pruned.weight(), table.weight() * pruned.stored())


def test_blocks_go_by_frequency_of_the_rows() -> None:
    id_map = IdMap(np.array([[0, 1], [2, 1], [3, 3]]), 5, 4, "test")
    counts = row_counts(id_map, np.array([5, 7, 2]))
    assert counts.tolist() == [5, 12, 7, 4, 0]
    assert frequency_blocks(counts, (0.2, 0.4, 0.4)).tolist() == [1, 0, 1, 2, 2]
    assert frequency_blocks(counts, (1.0,)).tolist() == [0] * 5


@pytest.mark.parametrize("shares", [(), (0.5, 0.4), (1.5, -0.5)])
def test_wrong_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"positive and add up to 1, got \["):
        frequency_blocks(np.arange(5), shares)


def test_bytes_count_rows_and_selection() -> None:
    table = new_table()
    assert table.bytes().weights == ROWS * DIM * 4 + BLOCKS * DIM * 4 + ROWS * 8
    assert table.optimizer_state() == {}
