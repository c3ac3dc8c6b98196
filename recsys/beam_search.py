"""Beam search for items: only prefixes of the catalogue are followed, for many users at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.code_trie import CodeTrie


class Decoder(Protocol):
    """A model that writes codes, and remembers for each beam what it has written."""

    def step(self, codes: Tensor | None, parents: Tensor) -> Tensor:
        """Write one more code.

        Args:
            codes: int64 [B * W], what each beam has written last, B users with W beams each; None at the start.
            parents: int64 [B * W], the beam of the step before that each one continues, among its [B * W'].

        Returns:
            Log-probabilities float32 [B * W, width of the level] of the next code.
        """
        ...


def beam_search(decoder: Decoder, trie: CodeTrie, users: int, beam: int, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The items with the highest sum of log-probabilities along their path, as far as the beam keeps them.

    A prefix is followed if it is among the ``beam`` best of its length below which not every item is left out, so that
    W items are found wherever there are so many; with as many beams as items that is every prefix, and the search is
    exact.

    Args:
        decoder: at its start.
        trie: of the catalogue.
        users: B.
        beam: W, prefixes that are kept.
        seen: int64 [S], ascending, ``row * N + item`` of items that are left out.

    Returns:
        Items int64 [B, W'] best first, -1 where there are fewer, and scores float32 [B, W'], -inf there; W' <= W.
    """
    device = trie.items.device
    nodes, scores = torch.zeros(users, dtype=torch.int64, device=device), torch.zeros(users, device=device)
    codes, parents, out = None, torch.arange(users, device=device), _by_leaf(trie, seen)
    for level in range(trie.levels):
        above, candidates = trie.expand(level, nodes)
        if not len(above):  # nobody has an item left
            break
        chances = decoder.step(codes, parents)
        written = trie.codes[level][candidates]
        values = scores[above] + chances[above, written]
        row = above // (len(nodes) // users)
        values = values.masked_fill(_all_among(trie, level, candidates, row, out), -torch.inf)
        chosen, scores = _best(values, row, users, beam)
        alive = scores != -torch.inf  # NaN goes on, for the caller to find
        parents, codes = above[chosen], torch.where(alive, written[chosen], 0)
        nodes = torch.where(alive, candidates[chosen], -1)
    items = torch.where(nodes < 0, -1, trie.items[nodes.clamp(min=0)])
    return items.view(users, -1), scores.view(users, -1)


def seen_keys(seen: csr_array, users: np.ndarray, device: torch.device) -> Tensor:
    """What :func:`beam_search` takes of a csr [num_users, N] with sorted indices, int64 [S].

    Args:
        seen: items to leave out.
        users: int64 [B], the rows in their order.
        device: of the search.
    """
    rows = seen[users]
    row = np.repeat(np.arange(len(users)), np.diff(rows.indptr))
    return torch.from_numpy(row * seen.shape[1] + rows.indices.astype(np.int64)).to(device)


def _best(values: Tensor, row: Tensor, rows: int, count: int) -> tuple[Tensor, Tensor]:
    """Places int64 and values of the best of each row, ``rows * W`` of them; -inf fills rows that have fewer.

    Args:
        values: float32 [C].
        row: int64 [C], ascending.
        rows: number of rows.
        count: W at most.
    """
    sizes = row.bincount(minlength=rows)
    starts = sizes.cumsum(0) - sizes
    within = torch.arange(len(row), device=row.device) - starts[row]
    longest = int(sizes.max())
    padded = values.new_full((rows * longest,), -torch.inf).index_copy_(0, row * longest + within, values)
    best, places = padded.view(rows, longest).topk(min(count, longest), dim=1)
    chosen = (starts[:, None] + places).clamp(max=len(row) - 1)
    return chosen.view(-1), best.reshape(-1)


def _by_leaf(trie: CodeTrie, seen: Tensor) -> Tensor:
    """Keys ``row * N + item`` as ``row * N + leaf``, int64 [S] ascending."""
    rows, items = seen // len(trie.items), seen % len(trie.items)
    keys: Tensor = (rows * len(trie.items) + trie.items.argsort()[items]).unique()  # type: ignore[no-untyped-call]
    return keys


def _all_among(trie: CodeTrie, level: int, nodes: Tensor, row: Tensor, out: Tensor) -> Tensor:
    """Whether all leaves below nodes of ``level + 1`` are among the keys ``row * N + leaf`` of their rows; bool [C]."""
    leaves, start = trie.leaves[level], row * len(trie.items)
    first, last = start + leaves[nodes], start + leaves[nodes + 1]
    return torch.searchsorted(out, last) - torch.searchsorted(out, first) == last - first
