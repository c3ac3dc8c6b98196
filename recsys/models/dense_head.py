"""LIGER (Yang et al. 2024, "Unifying generative and dense retrieval for sequential recommendation"): its dense head."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.mlp import Mlp
from recsys.sequences import Sequences


@dataclasses.dataclass(frozen=True)
class DenseSettings:
    """How the content of items is learned and served.

    Attributes:
        weight: of the cosine loss beside the loss of the codes.
        temperature: the cosines are divided by.
        candidates: K, items of the search that are ranked by their cosine; None ranks all items without a search.

    Raises:
        ValueError: A number is out of range.
    """

    weight: float = 1.0
    temperature: float = 0.07
    candidates: int | None = 20

    def __post_init__(self) -> None:
        """Refuse what trains or ranks nothing."""
        for name, value in (("weight", self.weight), ("temperature", self.temperature)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"DenseSettings.{name} must be a number above 0, got {value}")
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"DenseSettings.candidates must be >= 1, or None for all items, got {self.candidates}")


class DenseHead(nn.Module):
    """Projected content of the items, which the encoder reads beside their codes and its output is compared with.

    One projection serves both ends, so that an item that nobody had in training is read and ranked like any other.

    Args:
        content: float32 [N, F]; rows are scaled to length ``sqrt(F)``, which the network maps to unit variance.
        network: from F to D, the width of the transformer.
        settings: of the loss and of the ranking.
        max_items: events that are read, each with the embedding of its place counted from the last one.

    Attributes:
        cold: bool [N], items without an event in what the model was trained on; none before training.

    Raises:
        ValueError: The network does not take F columns.
    """

    content: Tensor
    cold: Tensor

    def __init__(self, content: Tensor, network: Mlp, settings: DenseSettings, *, max_items: int) -> None:
        super().__init__()
        if content.ndim != 2 or content.dtype != torch.float32 or content.shape[1] != network.widths[0]:
            raise ValueError(
                f"content must be float32 [N, {network.widths[0]}], the width of its network, got {content.dtype}"
                f" {list(content.shape)}"
            )
        self.settings = settings
        self.register_buffer("content", functional.normalize(content) * math.sqrt(content.shape[1]))
        self.register_buffer("cold", torch.zeros(len(content), dtype=torch.bool))
        self.network = network
        self.places = nn.Parameter(torch.zeros(max_items, network.widths[-1]))

    def set_cold(self, trained: Sequences) -> None:
        """Note which items have no event in what the model is trained on."""
        seen = torch.from_numpy(np.bincount(trained.items, minlength=len(self.cold)) > 0)
        self.cold.copy_(~seen)

    def items(self) -> Tensor:
        """Float32 [N, D], the projected content of the catalogue."""
        projected: Tensor = self.network(self.content)
        return projected

    def beside_codes(self, items: Tensor, read: Tensor, places: Tensor) -> Tensor:
        """What is added to the embedding of each token: the content and the place of its item.

        Args:
            items: float [N, D] of :meth:`items`.
            read: int64 [B, S], 1 + the item of each token, 0 where it is none's.
            places: int64 [B, S], 1 + the number of events after that item, 0 likewise.

        Returns:
            float [B, S, D], 0 where a token is none's.
        """
        known = items[(read - 1).clamp(min=0)] + self.places[(places - 1).clamp(min=0)]
        return known * (read > 0)[:, :, None]

    def loss(self, users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        """Weighted cross-entropy of the cosines over all items but cold ones, summed over B users.

        A cold item is never a target, so that as a negative it would only learn to be none.

        Args:
            users: float [B, D], the encoder's output at the last token.
            items: float32 [N, D] of :meth:`items`.
            targets: int64 [B].
        """
        with torch.autocast(users.device.type, enabled=False):
            cosines = functional.normalize(users.float()) @ functional.normalize(items).T
            logits = (cosines / self.settings.temperature).masked_fill(self.cold, -torch.inf)
            return self.settings.weight * functional.cross_entropy(logits, targets, reduction="sum")

    def rank(self, users: Tensor, items: Tensor, found: Tensor, chances: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Score the candidates of a search and every cold item by their cosine, in [-1, 1]; the rest comes after them.

        Args:
            users: float [B, D], the encoder's output at the last token.
            items: float32 [N, D] of :meth:`items`.
            found: int64 [B, W], items of the search best first, -1 = none; with W = 0 all items are ranked.
            chances: float32 [B, W], their log-probabilities.
            seen: int64 [S], ``row * N + item`` of items that are left out.

        Returns:
            Items int64 [B, W'] in no order, -1 = none, and scores float32 [B, W'], -inf there. What the search found
            beyond the candidates has its log-probability less 1, so that it keeps its order below every cosine.
        """
        users, items = functional.normalize(users), functional.normalize(items)
        first = found[:, : self.settings.candidates]
        near = (users[:, None] * items[first.clamp(min=0)]).sum(-1).clamp(-1, 1)
        searched = torch.cat([near, chances[:, first.shape[1] :] - 1], dim=1)
        searched = searched.masked_fill((found < 0) | self.cold[found.clamp(min=0)], -torch.inf)
        everywhere = self.ranked_for_all()
        keys = torch.arange(len(users), device=users.device)[:, None] * len(items) + everywhere
        known = (users @ items[everywhere].T).clamp(-1, 1).masked_fill(torch.isin(keys, seen), -torch.inf)
        scores = torch.cat([searched, known], dim=1)
        listed = torch.cat([found, everywhere.expand(len(users), -1)], dim=1)
        return torch.where(scores == -torch.inf, -1, listed), scores

    def ranked_for_all(self) -> Tensor:
        """Int64 [C]: items that are ranked for every user, whatever a search finds: cold ones, or all."""
        chosen = self.cold if self.settings.candidates is not None else torch.ones_like(self.cold)
        return chosen.nonzero()[:, 0]

    @torch.no_grad()
    def nearest(self, item: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Others int64 [n] in the order of the cosine of their content with that of an item."""
        near = functional.cosine_similarity(self.content[others], self.content[item][None])
        order: npt.NDArray[np.int64] = (-near).argsort(stable=True).numpy()
        return others[order]
