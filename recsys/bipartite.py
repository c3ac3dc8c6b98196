"""The normalised user-item graph and its products with a vector per node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.tables.addresses import Longs
from embeddings.tables.kernels import threads_for
from recsys.propagation_kernel import Adjacency, multiply, multiply_rows, multiply_sparse, positions

Pair = tuple[Tensor, Tensor]
"""Something of the users, and the same of the items."""
Rows = tuple[Longs, Longs]
"""Distinct int64 indices of users, and of items."""
NOTHING = np.empty((0, 0), np.float32)


@dataclasses.dataclass(frozen=True)
class BipartiteGraph:
    r"""Users and items with an edge for each interaction, normalised symmetrically.

    .. math:: \tilde A = D^{-1/2} A D^{-1/2}, \qquad \tilde A_{ui} = 1 / \sqrt{|N_u| |N_i|}

    (He et al. 2020, eq. 8). Both sides have one more node, the last, without edges: it stands for unseen ids. The
    matrix is symmetric and bipartite, so what is kept is its upper right block R by rows and by columns; ``A (x, y)``
    is ``(R y, R^T x)``, and the gradient of a product is a product with the same matrix.

    Attributes:
        by_user: R [users + 1, items + 1] by rows.
        by_item: R transposed.
    """

    by_user: Adjacency
    by_item: Adjacency

    @classmethod
    def of(cls, train: csr_array) -> BipartiteGraph:
        """The graph of ``train`` [users, items], whose stored values do not matter.

        Raises:
            ValueError: A (user, item) pair is stored twice.
        """
        users, items = train.shape
        rows = np.repeat(np.arange(users, dtype=np.int64), np.diff(train.indptr))
        columns = train.indices.astype(np.int64)
        keys = rows * max(items, 1) + columns
        if len(keys) > 1 and not (np.diff(keys) > 0).all():
            keys = np.unique(keys)
            if len(keys) != train.nnz:
                raise ValueError(
                    f"a graph needs each interaction once, got {train.nnz - len(keys):,} that occur again;"
                    " call sum_duplicates() first"
                )
            rows, columns = np.divmod(keys, max(items, 1))
        return _from_edges(rows, columns, (users + 1, items + 1))

    @property
    def num_users(self) -> int:
        """Users without the node of unseen ones."""
        return len(self.by_user.starts) - 2

    @property
    def num_items(self) -> int:
        """Items without the node of unseen ones."""
        return len(self.by_item.starts) - 2

    @property
    def num_edges(self) -> int:
        """Interactions, each of which two directed edges stand for."""
        return len(self.by_user.columns)

    def all_rows(self) -> Rows:
        """Every node, those of unseen ids included."""
        return np.arange(self.num_users + 1), np.arange(self.num_items + 1)

    def without(self, dropped: npt.NDArray[np.bool_]) -> BipartiteGraph:
        """Without the edges [E] of ``by_user`` that are ``dropped``, normalised by the degrees that are left."""
        users = np.repeat(np.arange(self.num_users + 1), np.diff(self.by_user.starts))
        shape = (self.num_users + 1, self.num_items + 1)
        return _from_edges(users[~dropped], self.by_user.columns[~dropped].astype(np.int64), shape)

    def interactions(self) -> dict[str, Tensor]:
        """Tensors ``graph.starts`` int64 [users + 1], ``graph.items`` int32 [E], ``graph.num_items`` int64 [1]."""
        return {
            "graph.starts": torch.from_numpy(self.by_user.starts[:-1].copy()),
            "graph.items": torch.from_numpy(self.by_user.columns.copy()),
            "graph.num_items": torch.tensor([self.num_items]),
        }

    @classmethod
    def from_interactions(cls, tensors: dict[str, Tensor]) -> BipartiteGraph:
        """The graph whose :meth:`interactions` these are."""
        starts, items = tensors["graph.starts"].numpy(), tensors["graph.items"].numpy()
        shape = (len(starts) - 1, int(tensors["graph.num_items"][0]))
        return cls.of(csr_array((np.ones(len(items), np.float32), items, starts), shape=shape))

    def matrix(self) -> csr_array:
        """Ones at the interactions, csr float32 [users, items]."""
        shape, columns = (self.num_users, self.num_items), self.by_user.columns
        return csr_array((np.ones(len(columns), np.float32), columns, self.by_user.starts[:-1]), shape=shape)

    def product(self, x: Pair, base: Pair | None = None) -> Pair:
        """``A x``, plus ``base``: float32 ([users + 1, D], [items + 1, D]), as ``x`` and ``base``."""
        from_users, from_items = (part.contiguous().numpy() for part in x)
        add = (NOTHING, NOTHING) if base is None else tuple(part.contiguous().numpy() for part in base)
        outs = torch.empty_like(x[0]), torch.empty_like(x[1])
        self._run(lambda n: multiply(self.by_user, from_items, add[0], n, outs[0].numpy()))
        self._run(lambda n: multiply(self.by_item, from_users, add[1], n, outs[1].numpy()))
        return outs

    def product_rows(self, x: Pair, rows: Rows) -> Pair:
        """``A x`` at some rows only: float32 ([n, D], [m, D])."""
        from_users, from_items = (part.contiguous().numpy() for part in x)
        outs = torch.empty(len(rows[0]), x[0].shape[1]), torch.empty(len(rows[1]), x[0].shape[1])
        self._run(lambda n: multiply_rows(self.by_user, from_items, rows[0], n, outs[0].numpy()))
        self._run(lambda n: multiply_rows(self.by_item, from_users, rows[1], n, outs[1].numpy()))
        return outs

    def product_of_rows(self, x: Pair, rows: Rows) -> Pair:
        """``A X`` where X is zero but for some rows, which are ``x``: float32 ([users + 1, D], [items + 1, D])."""
        from_users, from_items = (part.contiguous().numpy() for part in x)
        dim = x[0].shape[1]
        places = positions(rows[0], self.num_users + 1), positions(rows[1], self.num_items + 1)
        outs = torch.empty(self.num_users + 1, dim), torch.empty(self.num_items + 1, dim)
        self._run(lambda n: multiply_sparse(self.by_user, places[1], from_items, n, outs[0].numpy()))
        self._run(lambda n: multiply_sparse(self.by_item, places[0], from_users, n, outs[1].numpy()))
        return outs

    def _run(self, kernel: Callable[[int], None]) -> None:
        with threads_for(self.num_edges) as parts:
            kernel(parts)


def _from_edges(users: Longs, items: Longs, shape: tuple[int, int]) -> BipartiteGraph:
    """The graph of distinct edges that are sorted by user, then item."""
    degrees = np.bincount(users, minlength=shape[0]), np.bincount(items, minlength=shape[1])
    weights = (1.0 / np.sqrt(degrees[0][users] * degrees[1][items].astype(np.float64))).astype(np.float32)
    order = np.argsort(items, kind="stable")
    starts = [np.concatenate([[0], np.cumsum(degree)]).astype(np.int64) for degree in degrees]
    return BipartiteGraph(
        Adjacency(starts[0], items.astype(np.int32), weights),
        Adjacency(starts[1], users[order].astype(np.int32), weights[order]),
    )
