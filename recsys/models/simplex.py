"""SimpleX (Mao et al. 2021, "SimpleX: A simple and strong baseline for collaborative filtering")."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from embeddings.tables import look_up, step_all
from embeddings.tables.addresses import Longs
from embeddings.tables.table import Table
from recsys.dense_adam import DenseAdam
from recsys.models.mf import LookUp, MatrixFactorization, Similarity
from recsys.propagation import expand
from recsys.sparse_product import SparseMatrix, sparse_product

Pooling = Literal["mean", "attention"]
_USERS_AT_ONCE = 4096


class SimpleX(MatrixFactorization):
    r"""Matrix factorisation whose users are also what they interacted with.

    .. math:: h_u = g\, e_u + (1 - g)\, p_u V, \qquad p_u = \sum_{i \in N_u} \alpha_{ui}\, e_i

    with alpha = 1 / |N_u| ("mean"), or a softmax over the history of :math:`q^T \tanh(e_i W + b)` ("attention"; sec.
    3.2). The history is that of the training interactions, the positive of a step among them; a user without any has
    p = 0. V, W, b and q are trained by Adam with the learning rate of the users' table. The paper's loss is ``ccl``.

    Args:
        users: table of the users.
        items: table of the items, of the same dimension D; it serves the histories too.
        similarity: "dot" or "cosine".
        user_weight: g.
        pooling: how a history becomes one vector.
        generator: draws the initial V and W, Xavier uniform, and q.

    Raises:
        ValueError: ``user_weight`` is not in [0, 1].
    """

    def __init__(
        self,
        users: Table,
        items: Table,
        *,
        similarity: Similarity = "cosine",
        user_weight: float = 0.5,
        pooling: Pooling = "mean",
        generator: np.random.Generator,
    ) -> None:
        super().__init__(users, items, similarity=similarity)
        if not 0 <= user_weight <= 1:
            raise ValueError(f"SimpleX needs 0 <= user_weight <= 1, got {user_weight}")
        self.user_weight = user_weight
        self.pooling: Pooling = pooling
        bound = math.sqrt(3 / users.dim)
        self.mixers = nn.Parameter(_uniform(generator, (2, users.dim, users.dim), bound))  # V, W
        self.queries = nn.Parameter(_uniform(generator, (2, users.dim), bound))  # q, b
        self.adam = DenseAdam({"mixers": self.mixers, "queries": self.queries}, users.optimizer.lr)
        self._history: csr_array | None = None

    @property
    def history(self) -> csr_array:
        """The interactions [users, items] that users are pooled from.

        Raises:
            RuntimeError: There are none yet.
        """
        if self._history is None:
            raise RuntimeError("SimpleX needs the users' histories, got none; call use_graph(train) or fit it first")
        return self._history

    def use_graph(self, train: csr_array) -> None:
        """Pool over the interactions of ``train`` [users, items] from now on.

        Raises:
            ValueError: The shape is not the model's.
        """
        expected = (self.num_users, self.num_items)
        if train.shape != expected:
            raise ValueError(f"the histories must have the model's shape {expected} (users, items), got {train.shape}")
        self._history = train

    def look_up(
        self, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], seed: int, *counters: str | int
    ) -> LookUp:
        """See :meth:`MatrixFactorization.look_up`."""
        people, of = np.unique(users, return_inverse=True)
        user, item = self._blend(people, items)
        return LookUp(expand(user, of), item)

    def set_lr(self, lr: float) -> None:
        """See :meth:`TwoTables.set_lr`; of the matrices, too."""
        super().set_lr(lr)
        self.adam.lr = lr

    def step(self) -> None:
        """Apply the gradients to the tables, and to the matrices by Adam."""
        step_all(self.tables)
        self.adam.step()

    @torch.no_grad()
    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D], without gradient."""
        out = torch.empty(len(users), self.users.dim)
        for first in range(0, len(users), _USERS_AT_ONCE):
            part = np.ascontiguousarray(users[first : first + _USERS_AT_ONCE], dtype=np.int64)
            out[first : first + len(part)] = self._blend(part, np.empty(0, np.int64))[0]
        return self.represent(out)

    def _blend(self, users: Longs, items: Longs) -> tuple[Tensor, Tensor]:
        """Vectors of ``users`` [n, D] with their histories, and of ``items`` [m, D]."""
        known = (users >= 0) & (users < self.num_users)
        rows = self.history[np.where(known, users, 0)]
        lengths = np.where(known, np.diff(rows.indptr), 0)
        seen = rows.indices[np.repeat(known, np.diff(rows.indptr))].astype(np.int64)
        things, places = np.unique(np.concatenate([items, seen]), return_inverse=True)
        own, thing = look_up(self.tables, (torch.from_numpy(users), torch.from_numpy(things)))
        pooled = self._pool(thing, places[len(items) :], lengths)
        return self.user_weight * own + (1 - self.user_weight) * pooled @ self.mixers[0], expand(
            thing, places[: len(items)]
        )

    def _pool(self, vectors: Tensor, places: Longs, lengths: Longs) -> Tensor:
        """One vector for each history: float32 [n, D] of ``vectors[places]``, ``lengths`` [n] of them each."""
        if self.pooling == "mean":
            owners = np.repeat(np.arange(len(lengths)), lengths)
            weights = (1.0 / np.repeat(lengths, lengths)).astype(np.float32)
            return sparse_product(SparseMatrix.of(owners, places, weights, (len(lengths), len(vectors))), vectors)
        query, bias = self.queries
        each, sizes = expand(vectors, places), torch.from_numpy(lengths)
        powers = torch.exp(torch.tanh(each @ self.mixers[1] + bias) @ query)  # |logits| <= |q|_1: no overflow
        parts = torch.cat([each * powers[:, None], powers[:, None]], 1)
        sums = torch.segment_reduce(parts, "sum", lengths=sizes, unsafe=True)
        return sums[:, :-1] / sums[:, -1:].clamp(min=torch.finfo(torch.float32).tiny)


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], bound: float) -> Tensor:
    return torch.from_numpy(generator.uniform(-bound, bound, shape).astype(np.float32))
