"""Matrix factorisation over two embedding tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional

from embeddings.tables import look_up, step_all
from embeddings.tables.table import Table

Similarity = Literal["dot", "cosine"]


@dataclasses.dataclass(frozen=True)
class LookUp:
    """What a model gives to a step of the training.

    Attributes:
        users: float32 [B, D], before :meth:`MatrixFactorization.represent`.
        items: float32 [n, D].
        extras: further tensors that ``extra_loss`` is a function of.
        extra_loss: added to the loss; it gets tensors of the values of ``extras``.
    """

    users: Tensor
    items: Tensor
    extras: tuple[Tensor, ...] = ()
    extra_loss: Callable[[Sequence[Tensor]], Tensor] | None = None


class TwoTables(nn.Module):
    """A table of users and a table of items that are trained together.

    Attributes:
        users: table of the users, whatever its compression.
        items: table of the items, of the same dimension.

    Raises:
        ValueError: The dimensions differ.
    """

    def __init__(self, users: Table, items: Table) -> None:
        super().__init__()
        if users.dim != items.dim:
            raise ValueError(f"the tables must have one dimension, got {users.dim} for users, {items.dim} for items")
        self.users = users
        self.items = items

    @property
    def num_users(self) -> int:
        """Users known to the table."""
        return self.users.num_ids

    @property
    def num_items(self) -> int:
        """Items known to the table."""
        return self.items.num_ids

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table that is trained."""
        return self.users, self.items

    def use_graph(self, train: csr_array) -> None:
        """Told of the interactions [users, items] before each phase of the training; there is nothing to do."""

    def look_up(
        self, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], seed: int, *counters: str | int
    ) -> LookUp:
        """Differentiable vectors of a batch.

        Args:
            users: int64 [B].
            items: int64 [n], the positives of the users first.
            seed: of the run.
            counters: phase, epoch and step, for models that draw random numbers.
        """
        ids = torch.from_numpy(users), torch.from_numpy(items)
        user, item = look_up((self.users, self.items), ids)
        return LookUp(user, item)

    def set_lr(self, lr: float) -> None:
        """Let later steps use another learning rate; it is not part of ``state_dict``."""
        for table in self.tables:
            table.set_lr(lr)

    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step."""
        step_all(self.tables)


class MatrixFactorization(TwoTables):
    """Scores a user and an item by the inner product, or the cosine, of their vectors (Koren et al. 2009).

    A :class:`recsys.retriever.VectorRetriever`. Ids outside ``[0, num_users)`` or ``[0, num_items)`` get the vector of
    the table's unseen row.

    Attributes:
        similarity: "dot", or "cosine": vectors have length one.
    """

    def __init__(self, users: Table, items: Table, *, similarity: Similarity = "dot") -> None:
        super().__init__(users, items)
        self.similarity: Similarity = similarity

    def represent(self, raw: Tensor) -> Tensor:
        """Vectors as they are compared: of length one under cosine. Float [..., D] to the same shape."""
        return functional.normalize(raw, dim=-1) if self.similarity == "cosine" else raw

    @torch.no_grad()
    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D], without gradient."""
        return self.represent(self.users.vectors(torch.from_numpy(np.ascontiguousarray(users, dtype=np.int64))))

    @torch.no_grad()
    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D], without gradient."""
        return self.represent(self.items.vectors(torch.arange(items.start, items.stop, items.step)))

    def compared_items(self, items: range) -> Tensor:
        """The items' vectors as training compares them, float32 [len(items), D], without gradient."""
        return self.item_vectors(items)

    @torch.no_grad()
    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return self.user_vectors(users) @ self.item_vectors(range(self.num_items)).T
