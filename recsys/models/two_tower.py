"""Two towers over features and ids, compared by the cosine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.tables import Table, step_all
from embeddings.tables.sparse_table import SparseTable
from embeddings.tables.spec import TableBytes, total_bytes
from recsys.dense_adam import DenseAdam
from recsys.features import Features, MultiCategorical
from recsys.histories import Histories
from recsys.models.tower import ID, Tower

_AT_ONCE = 4096
_LOWEST_TEMPERATURE = 0.01


class TwoTower(nn.Module):
    """Scores a user and an item by the cosine of what their towers make of them (Yi et al. 2019).

    A :class:`recsys.retriever.VectorRetriever`. The user tower gets, beside the user's features, the mean vector of the
    user's last items, from the table of the item ids. Cold users and items have their features, and the unseen row of
    the id table.

    Args:
        users: tower of the users.
        items: tower of the items, of the same dimension.
        history_length: items of the user that are pooled; 0 for none.
        temperature: divisor of the cosines in the loss.
        learn_temperature: whether the loss trains it, from this value on.
        dense_lr: learning rate of Adam for all that is no table.

    Raises:
        ValueError: The towers' dimensions differ, or histories are wanted and the item tower has no ids.
    """

    def __init__(
        self,
        users: Tower,
        items: Tower,
        *,
        history_length: int = 0,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        dense_lr: float = 1e-3,
    ) -> None:
        super().__init__()
        if users.dim != items.dim:
            raise ValueError(f"the towers must have one dimension, got {users.dim} for users, {items.dim} for items")
        pooled = items.table_of(ID)
        if history_length > 0 and pooled is None:
            raise ValueError("a history is pooled from the items' id table; give the item tower the id, or no history")
        expected = pooled.dim if history_length > 0 and pooled is not None else 0
        if (users.extra_width, items.extra_width) != (expected, 0):
            raise ValueError(
                f"the user network must take {expected} numbers of the history beside the user's features and the item"
                f" network none, got {users.extra_width} and {items.extra_width}"
            )
        self.users = users
        self.items = items
        self.history_length = history_length
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)
        dense = {
            f"{side}_{name.replace('.', '_')}": parameter
            for side, tower in (("users", users), ("items", items))
            for name, parameter in tower.network.dense_parameters().items()
        }
        self.adam = DenseAdam(dense | ({"temperature": self.log_temperature} if learn_temperature else {}), dense_lr)
        for layer in self.sparse_layers:
            layer.set_lr(dense_lr)
        self._histories: Histories | None = None
        self._item_vectors: Tensor | None = None
        for module in (self, *self.tables()):
            module.register_load_state_dict_post_hook(lambda *_: self.forget())  # type: ignore[no-untyped-call]

    @property
    def num_users(self) -> int:
        """Users whose features are known."""
        return self.users.features.num_rows

    @property
    def num_items(self) -> int:
        """Items whose features are known."""
        return self.items.features.num_rows

    @property
    def temperature(self) -> Tensor:
        """Scalar, at least 0.01."""
        return self.log_temperature.exp().clamp(min=_LOWEST_TEMPERATURE)

    @property
    def histories(self) -> Histories:
        """The histories in which users are served.

        Raises:
            RuntimeError: There are none yet.
        """
        if self._histories is None:
            raise RuntimeError("TwoTower needs histories, got none; call use_histories(...) or fit it first")
        return self._histories

    def use_histories(self, histories: Histories) -> None:
        """Serve users with these histories from now on.

        Raises:
            ValueError: They are of other users or items.
        """
        found, expected = (histories.num_users, histories.num_items), (self.num_users, self.num_items)
        if found != expected:
            raise ValueError(f"histories must be of the model's {expected} users and items, got {found}")
        self._histories = histories

    def tables(self) -> list[Table]:
        """The tables of both towers."""
        return [*self.users.tables, *self.items.tables]

    @property
    def sparse_layers(self) -> list[SparseTable]:
        """The weights of the layers of both towers, where a share of them is stored."""
        return [*self.users.network.sparse_layers, *self.items.network.sparse_layers]

    def layer_bytes(self) -> TableBytes:
        """Exact sizes of all that is no embedding table."""
        whole = sum(p.nbytes for tower in (self.users, self.items) for p in tower.network.dense_parameters().values())
        return total_bytes(TableBytes(whole, self.adam.bytes()), *(layer.bytes() for layer in self.sparse_layers))

    def forget(self) -> None:
        """Make the item vectors again at the next evaluation; call it after writing to weights."""
        self._item_vectors = None

    def encode_users(self, features: Features, history: MultiCategorical | None) -> Tensor:
        """Unit vectors float32 [n, D] of users with these features and histories; None without histories."""
        table = self.items.table_of(ID)
        extra = [] if history is None or table is None else [(table, history)]
        return functional.normalize(self.users(features, extra), dim=-1)

    def encode_items(self, features: Features) -> Tensor:
        """Unit vectors float32 [n, D] of items with these features."""
        return functional.normalize(self.items(features), dim=-1)

    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step."""
        step_all([*self.tables(), *self.sparse_layers])
        self.adam.step()
        self.forget()

    @torch.no_grad()
    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D], without gradient."""
        vectors = torch.empty(len(users), self.users.dim)
        for start in range(0, len(users), _AT_ONCE):
            some = np.ascontiguousarray(users[start : start + _AT_ONCE], dtype=np.int64)
            history = self.histories.latest(some, self.history_length) if self.history_length else None
            vectors[start : start + _AT_ONCE] = self.encode_users(self.users.features.take(some), history)
        return vectors

    @torch.no_grad()
    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D], without gradient; kept until a weight changes."""
        if self._item_vectors is None:
            parts = [np.arange(a, min(a + _AT_ONCE, self.num_items)) for a in range(0, self.num_items, _AT_ONCE)]
            self._item_vectors = torch.cat([self.encode_items(self.items.features.take(part)) for part in parts])
        return self._item_vectors[items.start : items.stop : items.step]

    @torch.no_grad()
    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return self.user_vectors(users) @ self.item_vectors(range(self.num_items)).T
