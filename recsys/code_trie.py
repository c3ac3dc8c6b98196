"""The codes of a catalogue as a trie in compressed rows: which code may follow which prefix."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from embeddings.semantic_id.codes import SemanticCodes


@dataclasses.dataclass(frozen=True)
class CodeTrie:
    """Prefixes of every length as nodes, in the order of their codes; the leaves of level L are the items.

    Node i of level l has the nodes ``children[l][i]`` to ``children[l][i + 1]`` of level l + 1, so that a whole level
    is expanded without a loop. Level 0 is the root alone.

    Attributes:
        children: for each level l < L int64 [nodes of level l + 1].
        codes: for each level l >= 1, at place l - 1, int64 [nodes of level l], the last code of each prefix.
        leaves: likewise int64 [nodes of level l + 1], the first leaf below each prefix, and N.
        items: int64 [N], the item of each leaf.
    """

    children: tuple[Tensor, ...]
    codes: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    items: Tensor

    @classmethod
    def of(cls, codes: SemanticCodes) -> CodeTrie:
        """The trie of a catalogue.

        Raises:
            ValueError: Two items have the same codes, so that a leaf would be more than one item.
        """
        if not codes.unique:
            first = codes.colliding[0]
            raise ValueError(
                f"each item needs codes of its own, but {codes.colliding.size:,} of {codes.num_items:,} share theirs,"
                f" first item {first} with {codes.codes[first].tolist()};"
                " set semantic_ids.collisions to digit or reassign"
            )
        order = np.lexsort(codes.codes.T[::-1])
        paths = codes.codes[order]
        differs = np.ones((codes.levels, codes.num_items), dtype=np.bool_)
        differs[:, 1:] = np.logical_or.accumulate((paths[1:] != paths[:-1]).T, axis=0)
        node = differs.cumsum(axis=1) - 1
        children = [np.array([0, node[0, -1] + 1])]
        for level in range(1, codes.levels):
            starts = node[level, differs[level - 1]]
            children.append(np.append(starts, node[level, -1] + 1))
        ends = [paths[differs[level], level].astype(np.int64) for level in range(codes.levels)]
        leaves = [np.append(np.flatnonzero(starts), codes.num_items) for starts in differs]
        below, last, first = (tuple(map(torch.from_numpy, arrays)) for arrays in (children, ends, leaves))
        return cls(below, last, first, torch.from_numpy(order))

    @property
    def levels(self) -> int:
        """L, the length of a path."""
        return len(self.codes)

    def to(self, device: torch.device) -> CodeTrie:
        """The same on another device."""
        parts = (self.children, self.codes, self.leaves)
        children, codes, leaves = (tuple(part.to(device) for part in arrays) for arrays in parts)
        return CodeTrie(children, codes, leaves, self.items.to(device))

    def expand(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Children of nodes of a level.

        Args:
            level: of the nodes, below L.
            nodes: int64 [M]; -1 has no children.

        Returns:
            For each of C children the place of its parent in ``nodes``, ascending, and its node of the next level,
            both int64 [C].
        """
        starts = self.children[level][nodes.clamp(min=0)]
        counts = torch.where(nodes < 0, 0, self.children[level][nodes.clamp(min=0) + 1] - starts)
        parents = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        within = torch.arange(len(parents), device=nodes.device) - (counts.cumsum(0) - counts)[parents]
        return parents, starts[parents] + within
