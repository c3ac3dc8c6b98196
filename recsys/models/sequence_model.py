"""A retriever that reads what a user did, in order, over one table of items."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.tables.table import Table
from recsys.dropout import Dropout
from recsys.jagged_attention import Block, blocks
from recsys.models.content_items import ContentItems
from recsys.models.mf import Similarity
from recsys.sequences import Batch, Sequences

_EVENTS_AT_ONCE = 1 << 15


class Encoder(nn.Module, abc.ABC):
    """From the vectors of a sequence's items to a vector for what comes after each of them.

    Args:
        dim: D.
        layers: how many.
        heads: of the attention; must divide D.
        max_length: events that it reads; older ones are left out.
        dropout: share of the numbers that a training step drops.

    Raises:
        ValueError: A parameter is out of range.
    """

    def __init__(self, dim: int, *, layers: int, heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim, got {heads} heads for dim {dim}")
        if max_length < 1 or layers < 1:
            raise ValueError(f"max_length and layers must be at least 1, got {max_length} and {layers}")
        self.heads, self.max_length, self.dropout = heads, max_length, dropout
        self._shape = {"layers": layers, "heads": heads, "max_length": max_length, "dropout": dropout}

    def facts(self) -> dict[str, Any]:
        """The arguments that shape it, JSON-able; a subclass adds its ``name``."""
        return dict(self._shape)

    @abc.abstractmethod
    def forward(self, items: Tensor, batch: Batch, parts: list[Block], dropout: Dropout) -> Tensor:
        """Encode sequences; the output of an event depends on it and on those before it.

        Args:
            items: float32 [T, D].
            batch: the T events, at most ``max_length`` in a sequence.
            parts: the blocks of the batch.
            dropout: switched off outside of training.

        Returns:
            float32 [T, D].
        """


class SequenceReader(nn.Module, abc.ABC):
    """What reads a user's history: an encoder over the vectors of the items, and the histories.

    Attributes:
        encoder: reads the sequences; its parameters are dense.
        histories: what each user did, as far as the model may know.
    """

    def __init__(self, encoder: Encoder, histories: Sequences) -> None:
        super().__init__()
        self.encoder = encoder
        self.histories = histories

    @property
    def num_users(self) -> int:
        """Users with a place among the histories, those without an event included."""
        return self.histories.num_users

    @property
    @abc.abstractmethod
    def num_items(self) -> int:
        """Items that can be read and scored."""

    @property
    @abc.abstractmethod
    def table(self) -> Table | ContentItems:
        """What training looks up and steps."""

    @abc.abstractmethod
    def inputs(self, items: Tensor) -> Tensor:
        """Vectors that the encoder reads, outside autograd: int64 [T] to float32 [T, D]."""

    @abc.abstractmethod
    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items], without gradient."""

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """What is no table, by name; a training has an optimizer for it."""
        return dict(self.encoder.named_parameters())

    def encode(self, items: Tensor, batch: Batch, rng: np.random.Generator | None = None) -> Tensor:
        """What comes after each event.

        Args:
            items: float32 [T, D], the vectors of ``batch.items``.
            batch: at most ``encoder.max_length`` events in a sequence; sorted by length it takes least time.
            rng: draws the dropout; None outside of training.

        Returns:
            float32 [T, D].
        """
        dropout = Dropout(self.encoder.dropout, rng)
        encoded: Tensor = self.encoder(items, batch, blocks(batch.lengths), dropout)
        return encoded

    @torch.no_grad()
    def encode_users(self, users: npt.NDArray[np.int64]) -> Tensor:
        """What comes after the last event of each user: float32 [len(users), D], 0 where there is no event."""
        users = np.asarray(users, dtype=np.int64)
        lengths = np.minimum(self.histories.lengths[users], self.encoder.max_length)
        out = torch.zeros(len(users), self.table.dim)
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        for some in np.split(order, np.flatnonzero(np.diff(np.cumsum(lengths[order]) // _EVENTS_AT_ONCE)) + 1):
            if not some.size:
                continue
            batch = self.histories.last(users[some], self.encoder.max_length)
            encoded = self.encode(self.inputs(torch.from_numpy(batch.items)), batch)
            out[torch.from_numpy(some)] = encoded[torch.from_numpy(np.cumsum(batch.lengths) - 1)]
        return out


class SequenceModel(SequenceReader):
    """Scores an item by the inner product, or the cosine, of its vector with the encoded history of the user.

    A :class:`recsys.retriever.VectorRetriever`; one table gives the inputs and the outputs, whatever its compression.
    A user without a history has the vector 0, so that all items score alike.

    Attributes:
        items: table of the items, or their content.
        similarity: "dot", or "cosine": vectors have length one.
    """

    def __init__(
        self, items: Table | ContentItems, encoder: Encoder, histories: Sequences, *, similarity: Similarity = "dot"
    ) -> None:
        super().__init__(encoder, histories)
        self.items = items
        self.similarity: Similarity = similarity

    @property
    def num_items(self) -> int:
        """Items known to the table."""
        return self.items.num_ids

    @property
    def table(self) -> Table | ContentItems:
        """See :class:`SequenceReader`."""
        return self.items

    def inputs(self, items: Tensor) -> Tensor:
        """See :class:`SequenceReader`."""
        return self.items.vectors(items)

    def represent(self, raw: Tensor) -> Tensor:
        """Vectors as they are compared: of length one under cosine. Float [..., D] to the same shape."""
        return functional.normalize(raw, dim=-1) if self.similarity == "cosine" else raw

    @torch.no_grad()
    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D], without gradient."""
        return self.represent(self.encode_users(users))

    @torch.no_grad()
    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D], without gradient."""
        return self.represent(self.items.vectors(torch.arange(items.start, items.stop, items.step)))

    @torch.no_grad()
    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return self.user_vectors(users) @ self.item_vectors(range(self.num_items)).T
