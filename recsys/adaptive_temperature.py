"""The temperatures of Adap-tau: one for all from the geometry of the vectors, one per user from the user's loss."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.special import lambertw
from torch import Tensor

from recsys.contrastive_losses import InverseTemperatures, plain_softmax_rows
from recsys.losses import Adaptation, Negatives

IntArray = npt.NDArray[np.int64]

_ASSUMED_GAP = 0.7
_LEAST_GAP = 0.05
_LEAST_INVERSE = 1.0
_QUIET_SHARE = 0.2
_LARGEST_LOSS = 1000.0
_LEAST_RELATIVE = -math.exp(-1.0) + 1e-15
"""Lambert's function has a branch point at -1/e, where scipy gives nan."""


class Cosines(Protocol):
    """A model that is trained by the cosines of its vectors."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        ...

    def user_vectors(self, users: IntArray) -> Tensor:
        """Float32 [len(users), D], of length one."""
        ...

    def compared_items(self, items: range) -> Tensor:
        """Float32 [len(items), D], of length one."""
        ...


class AdaptiveTemperature:
    r"""State of Adap-tau (Chen et al. 2023, "Adap-tau: Adaptively modulating embedding magnitude for recommendation").

    At the start of an epoch, from the cosines as they are then,

    .. math:: \frac{1}{\tau_0} = \frac{\ln(|U| |I| / 2 |E|)}{\overline{s}_E - \overline{s}_{U \times I}}, \qquad
              \frac{1}{\tau_u} = \frac{1}{\tau_0} \exp(-W(\max(-1/e, (L_u - \overline{L}) / \beta)))

    with U the users above the 20 % least active, E their interactions, W Lambert's function and L_u the user's mean
    loss without temperature in the epoch before, over the positives that had a negative. In the warm-up the gap of the
    means is taken to be 0.7. It never counts as less than 0.05, and temperatures are at most 1, so that dense or tiny
    data cannot turn the sign.

    Args:
        train: csr [users, items].
        adaptation: its parameters.
    """

    def __init__(self, train: csr_array, adaptation: Adaptation) -> None:
        degrees = np.diff(train.indptr).astype(np.int64)
        active = degrees > np.quantile(degrees, _QUIET_SHARE)
        self._active: IntArray = np.flatnonzero(active if active.any() else degrees > 0).astype(np.int64)
        self._pairs = _interactions(train, self._active)
        self._adaptation = adaptation
        self._log_odds = math.log(0.5 * len(self._active) * train.shape[1] / max(len(self._pairs[0]), 1))
        self._common = 0.0
        self._inverse = np.zeros(len(degrees))
        self._losses, self._observed = np.zeros(len(degrees)), np.zeros(len(degrees))

    def start_epoch(self, epoch: int, model: Cosines) -> None:
        """Set the temperatures of an epoch.

        Args:
            epoch: 0-based; in epoch 0 no user has a loss yet, and all have the same temperature.
            model: whose vectors are compared.
        """
        gap = _ASSUMED_GAP if epoch < self._adaptation.warmup_epochs else max(self._gap(model), _LEAST_GAP)
        self._common = max(self._log_odds / gap, _LEAST_INVERSE)
        self._inverse = np.full(len(self._inverse), self._common)
        known = self._observed > 0
        if self._adaptation.beta is not None and epoch > 0 and known.any():
            losses = self._losses[known] / self._observed[known]
            quantile = self._adaptation.quantile
            base = losses.mean() if quantile is None else np.quantile(losses, quantile)
            relative = np.clip((losses - base) / self._adaptation.beta, _LEAST_RELATIVE, _LARGEST_LOSS)
            self._inverse[known] *= np.exp(-np.real(lambertw(relative.tolist())))
        self._losses, self._observed = np.zeros(len(known)), np.zeros(len(known))

    def _gap(self, model: Cosines) -> float:
        """Mean cosine of the interactions above the mean cosine of all pairs."""
        users = model.user_vectors(self._active).double().numpy()
        items = model.compared_items(range(model.num_items)).double().numpy()
        rows, columns = self._pairs
        positive = sum(float((users[a] * items[b]).sum()) for a, b in _blocks(rows, columns)) / max(len(rows), 1)
        return positive - float(users.mean(0) @ items.mean(0))

    def of(self, users: IntArray) -> InverseTemperatures:
        """One over the temperatures of a batch; ``users`` int64 [B]."""
        return InverseTemperatures(self._common, torch.from_numpy(self._inverse[users].astype(np.float32)))

    def observe(self, users: IntArray, user_BD: Tensor, positive_BD: Tensor, negatives: Negatives) -> None:
        """Add the losses of a batch to those of its users; does nothing where all users have one temperature."""
        if self._adaptation.beta is not None:
            rows = plain_softmax_rows(user_BD.detach(), positive_BD.detach(), negatives)
            counted = ~np.isneginf(losses := rows.double().numpy())
            np.add.at(self._losses, users[counted], losses[counted])
            np.add.at(self._observed, users[counted], 1.0)

    def state(self) -> dict[str, Tensor]:
        """What a resume in the middle of an epoch needs."""
        arrays = {"inverse": self._inverse, "losses": self._losses, "observed": self._observed}
        common = torch.tensor([self._common], dtype=torch.float64)
        return {"common": common, **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self._common = float(state["common"][0])
        arrays = (state[name].numpy().copy() for name in ("inverse", "losses", "observed"))
        self._inverse, self._losses, self._observed = arrays


_Pairs = tuple[IntArray, IntArray]


def _interactions(train: csr_array, users: IntArray) -> _Pairs:
    """(place in ``users``, item) of all interactions of ``users``, int64 each."""
    part = train[users]
    return np.repeat(np.arange(len(users)), np.diff(part.indptr)), part.indices.astype(np.int64)


def _blocks(rows: IntArray, columns: IntArray, size: int = 1 << 16) -> list[_Pairs]:
    return [(rows[first : first + size], columns[first : first + size]) for first in range(0, len(rows), size)]
