"""What a table is told about its optimizer, and what it tells about its size."""

from __future__ import annotations

import dataclasses
from typing import Literal

OptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "lazy_adam"]


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """Optimizer of a table, with the formulas of FBGEMM's exact optimizers and of ``torch.optim.Adam``.

    For a row w with summed gradient g (weight decay: g + weight_decay * w), of dimension D:

    - ``sgd``: w -= lr g
    - ``adagrad`` (Duchi et al. 2011): s += g^2; w -= lr g / (sqrt(s) + eps), elementwise
    - ``rowwise_adagrad``: s += mean_D(g^2), one number a row; w -= lr g / (sqrt(s) + eps)
    - ``adam`` (Kingma and Ba 2015, algorithm 1): the dense algorithm, so rows that a batch does not touch move and
      decay too
    - ``lazy_adam``: Adam's formula for the rows of the batch alone, with the steps of the whole table in the correction
      of its bias, as in FBGEMM's and ``torch.optim.SparseAdam``; a step costs what the batch costs, not the table

    All but ``adam`` touch only the rows of the batch, and decay only those. A row that a batch asks for several times
    gets one update with the summed gradient.

    Attributes:
        name: one of the five.
        lr: learning rate.
        eps: added to the root.
        betas: decay rates of Adam's moments.
        weight_decay: L2 penalty added to the gradient.
    """

    name: OptimizerName = "adam"
    lr: float = 1e-3
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class TableBytes:
    """Bytes of a table: ``weights`` and ``optimizer`` state by row, and the id map (``map``), which is apart."""

    weights: int
    optimizer: int
    map: int = 0


def total_bytes(*sizes: TableBytes) -> TableBytes:
    """The sizes of several tables together."""
    return TableBytes(sum(s.weights for s in sizes), sum(s.optimizer for s in sizes), sum(s.map for s in sizes))
