"""Mixed dimensions by soft selection: DNIS (Cheng et al. 2020), AutoSrh (Kong et al. 2023).

Rows are sorted by frequency and cut into L blocks. A block has a weight between 0 and 1 for every column, and a row's
vector is the product with its block's weights. Rows learn from training batches, weights from held-out batches; what is
small in the product is dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap, IntArray
from embeddings.tables.spec import OptimizerSpec, TableBytes
from embeddings.tables.table import Bags, Table
from embeddings.tables.torch_table import TorchTable


def frequency_blocks(counts: IntArray, shares: Sequence[float]) -> IntArray:
    """The block of each row, block 0 being the most frequent.

    Args:
        counts: int64 [R], how often a row is looked up; equal ones go by row.
        shares: of the rows in each block, adding up to 1.

    Returns:
        int64 [R], in ``[0, len(shares))``.

    Raises:
        ValueError: The shares are not positive, or do not add up to 1.

    Example:
        >>> frequency_blocks(np.array([1, 9, 5, 0]), (0.25, 0.75))
        array([1, 0, 1, 1])
    """
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares of the frequency blocks must be positive and add up to 1, got {list(shares)}")
    bounds = np.round(np.cumsum(shares)[:-1] * len(counts)).astype(np.int64)
    blocks = np.empty(len(counts), np.int64)
    blocks[np.argsort(-counts, kind="stable")] = np.searchsorted(bounds, np.arange(len(counts)), side="right")
    return blocks


def row_counts(id_map: IdMap, id_counts: IntArray) -> IntArray:
    """How often each row is looked up, int64 [R], from how often each id is, int64 [N]."""
    counts = np.zeros(id_map.num_rows, np.int64)
    np.add.at(counts, id_map.rows, id_counts[:, None])
    return counts


class SoftSelection(Table):
    r"""A table whose rows are multiplied by the weights of their block: :math:`\tilde e_i = \alpha_{b(i)} \odot e_i`.

    :meth:`step` applies the gradient to the rows, or to ``alpha`` where :attr:`learns` says so. The gradient of a
    block's weights is divided by its mean magnitude; ``l1`` is added, and the result is kept in [0, 1]. The other one's
    part of the gradient is not taken (first order, as the published results).

    Args:
        id_map: which rows an id has.
        dim: D.
        optimizer: of the rows.
        blocks: int64 [num_rows], of :func:`frequency_blocks`.
        init_std: standard deviation of the rows' normal initialisation.
        generator: draws it.
        alpha_lr: learning rate of the weights.
        alpha_l1: their L1 penalty.
    """

    blocks: Tensor

    def __init__(
        self, id_map: IdMap, dim: int, optimizer: OptimizerSpec, blocks: IntArray, *, init_std: float,
        generator: np.random.Generator, alpha_lr: float = 1e-2, alpha_l1: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__(id_map, dim, optimizer)
        self.rows = TorchTable(id_map, dim, optimizer, init_std=init_std, generator=generator)
        self.register_buffer("blocks", torch.from_numpy(blocks), persistent=False)
        self.alpha = nn.Parameter(torch.ones(int(blocks.max()) + 1, dim))
        self.alpha_lr, self.alpha_l1 = alpha_lr, alpha_l1
        self.learns: Literal["rows", "alpha"] = "rows"

    def pool(self, bags: Bags) -> Tensor:
        """Float32 [B, D]: the weighted sum of each bag's products; differentiable in what :attr:`learns`."""
        rows = self.rows.pool(Bags(bags.rows, None, None))
        alpha = self.alpha.index_select(0, self.blocks[bags.rows.long()])
        product = rows * alpha.detach() if self.learns == "rows" else rows.detach() * alpha
        if bags.weights is not None:
            product = product * bags.weights[:, None]
        if bags.offsets is None:
            return product
        lengths = bags.offsets.diff()
        return torch.segment_reduce(product, "sum", lengths=lengths, initial=0.0)

    def weight(self) -> Tensor:
        """Float32 [num_rows, D], the products."""
        return self.rows.weight() * self.alpha.detach()[self.blocks]

    def optimizer_state(self) -> dict[str, Tensor]:
        """Of the rows."""
        return self.rows.optimizer_state()

    def bytes(self) -> TableBytes:
        """Of the rows and the weights of the blocks, as they are during the search."""
        sizes = self.rows.bytes()
        return TableBytes(sizes.weights + self.alpha.nbytes + self.blocks.nbytes, sizes.optimizer, sizes.map)

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step to what :attr:`learns`."""
        self.rows.step()
        gradient = self.alpha.grad
        if gradient is None:
            return
        size = gradient.abs().mean(1, keepdim=True)
        direction = torch.where(size > 0, gradient / size.clamp(min=torch.finfo().tiny), 0.0)
        self.alpha.sub_(self.alpha_lr * (direction + self.alpha_l1)).clamp_(0.0, 1.0)
        self.alpha.grad = None
