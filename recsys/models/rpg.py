"""RPG (Hou et al. 2025, "Generating long semantic IDs in parallel for recommendation")."""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.semantic_id.codes import SemanticCodes
from embeddings.tables.addresses import Floats, Ints
from embeddings.tables.table import Table
from recsys.models.sequence_model import Encoder, SequenceReader
from recsys.multi_token import Heads, token_log_probabilities
from recsys.sequences import Sequences

_USERS_AT_ONCE, _LANES = 1024, 16


class Rpg(SequenceReader):
    r"""Predicts all digits of the next item's semantic id at once, and ranks every item by what its digits get.

    .. math::
        e_i = \frac{1}{m} \sum_j t_{j, c_{ij}}, \quad
        p_j(c) = softmax_c(\cos(g_j(h), t_{j, c}) / \tau), \quad
        s_i = \sum_j \ln p_j(c_{ij})

    with the tokens t of one table, which are input and output, the user's encoded history h and a head g_j for each
    digit j. The score is the log-probability of the item's id. Of a user it takes m * M
    numbers, from which each item adds up its m, so that the exact ranking of the whole catalogue costs as much as
    inner products of m columns: nothing is searched or approximated. Items with equal ids have equal scores. A user
    without a history has the same score for all items.

    Args:
        codes: of the items; digits may have different widths.
        tokens: a row for each token, digit by digit; its dimension is that of the encoder.
        encoder: reads the sequences.
        histories: what each user did, as far as the model may know.
        temperature: tau.

    Attributes:
        heads: their parameters.

    Raises:
        ValueError: The table has not one row for each token.
    """

    def __init__(
        self, codes: SemanticCodes, tokens: Table, encoder: Encoder, histories: Sequences, *, temperature: float
    ) -> None:
        super().__init__(encoder, histories)
        if tokens.num_ids != sum(codes.widths):
            raise ValueError(
                f"tokens must be a table of {sum(codes.widths):,} ids, the codes of all digits, got {tokens.num_ids:,}"
            )
        self.codes = codes
        self.tokens = tokens
        self.temperature = temperature
        self.heads = Heads(codes.levels, tokens.dim)
        starts = np.cumsum(codes.widths) - codes.widths
        self._rows = (codes.codes + starts).astype(np.int32)
        """Int32 [num_items, m]: the rows of each item's tokens."""

    @property
    def num_items(self) -> int:
        """Items that have codes."""
        return self.codes.num_items

    @property
    def table(self) -> Table:
        """See :class:`SequenceReader`."""
        return self.tokens

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`SequenceReader`; the heads too."""
        return super().dense_parameters() | {f"heads.{name}": part for name, part in self.heads.named_parameters()}

    def mean_tokens(self, tokens: Tensor, items: Tensor) -> Tensor:
        """What the encoder reads: the mean of each item's tokens.

        Args:
            tokens: float32 [m * M, D].
            items: int64 [T].

        Returns:
            float32 [T, D], differentiable in the tokens.
        """
        return functional.embedding_bag(torch.from_numpy(self._rows)[items], tokens, mode="mean")

    def inputs(self, items: Tensor) -> Tensor:
        """See :class:`SequenceReader`."""
        return self.mean_tokens(self.tokens.vectors(), items)

    @torch.no_grad()
    def log_probabilities(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Of every token as a digit of the user's next item: float32 [len(users), m * M]."""
        users = np.asarray(users, dtype=np.int64)
        hidden = self.encode_users(users)
        found = token_log_probabilities(hidden, self.tokens.vectors(), self.heads, self.codes.widths, self.temperature)
        nobody = torch.from_numpy(self.histories.lengths[users] == 0)
        alike = torch.cat([torch.full((width,), -math.log(width)) for width in self.codes.widths])
        return torch.where(nobody[:, None], alike, found)

    def digit_log_probabilities(self, user: int, items: npt.NDArray[np.int64]) -> Tensor:
        """Of each digit of items: float32 [n, m] of int64 [n], whose rows add up to the scores."""
        found = self.log_probabilities(np.array([user]))[0]
        return found[torch.from_numpy(self._rows[items]).long()]

    @torch.no_grad()
    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        out = torch.empty(len(users), self.num_items)
        for first in range(0, len(users), _USERS_AT_ONCE):
            block = slice(first, first + _USERS_AT_ONCE)
            _add_up(self.log_probabilities(users[block]).numpy(), self._rows, out[block].numpy())
        return out


@numba.njit(parallel=True, cache=True)
def _add_up(tokens: Floats, rows: Ints, out: Floats) -> None:
    """Write the sums of each user's tokens, digit after digit.

    Args:
        tokens: float32 [U, T].
        rows: int32 [N, m], the tokens of each item.
        out: float32 [U, N].
    """
    users, count = tokens.shape
    for block in numba.prange((users + _LANES - 1) // _LANES):
        first = block * _LANES
        last = min(first + _LANES, users)
        packed = np.zeros((count, _LANES), np.float32)  # users side by side, so that one load serves all of them
        packed[:, : last - first] = tokens[first:last].T
        sums = np.empty(_LANES, np.float32)
        for item in range(len(rows)):
            sums[:] = 0
            for digit in range(rows.shape[1]):
                for lane in range(_LANES):
                    sums[lane] += packed[rows[item, digit], lane]
            out[first:last, item] = sums[: last - first]
