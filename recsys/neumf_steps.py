"""NeuMF's epoch: pointwise log-loss over interactions and sampled negatives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.losses import binary_cross_entropy
from recsys.models.neumf import NeuMf
from recsys.samplers import IntArray, NegativeSampler, epoch_order
from recsys.settings import FitSettings


class NeuMfSteps:
    """A positive has label 1, its negatives have label 0 (He et al. 2017, eq. 7).

    Attributes:
        count: interactions of an epoch.
        steps_per_epoch: batches of an epoch.

    Raises:
        ValueError: The loss is not "log_loss", or a setting asks for what is not there.
    """

    def __init__(self, model: NeuMf, train: csr_array, settings: FitSettings, *, seed: int) -> None:
        plain = settings.lr_decay == 1.0 and settings.gradient_clip_norm is None and settings.precision == "float32"
        if settings.loss.name != "log_loss" or settings.loss.user_dropout or not plain:
            raise ValueError(
                "NeuMf needs loss log_loss without user_dropout, lr_decay 1, no gradient_clip_norm and float32,"
                f" got loss {settings.loss.name} ({settings.loss.user_dropout}), {settings.lr_decay},"
                f" {settings.gradient_clip_norm} and {settings.precision}"
            )
        if settings.positives != "interactions":
            raise ValueError(f"NeuMF takes every interaction once: positives must be that, got {settings.positives!r}")
        if settings.negatives.group is not None:
            raise ValueError(
                f"the batches of NeuMf have no groups: negatives.group must be None, got {settings.negatives.group}"
            )
        self.count = int(train.nnz)
        self.steps_per_epoch = -(-self.count // settings.batch_size)
        self._model, self._seed = model, seed
        self._users = np.repeat(np.arange(train.shape[0], dtype=np.int64), np.diff(train.indptr))
        self._items = train.indices.astype(np.int64)
        self._sampler = NegativeSampler(train, settings.negatives, seed=seed)

    def knowledge(self) -> dict[str, IntArray]:
        """See :meth:`recsys.objective.Objective.knowledge`."""
        return self._sampler.knowledge()

    def state(self) -> dict[str, Tensor]:
        """Nothing: the model has it all."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing to do."""

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """See :meth:`recsys.objective.Objective.steps`."""
        order = epoch_order(self.count, seed=self._seed, phase=phase, epoch=epoch)
        bounds = np.linspace(0, self.count, self.steps_per_epoch + 1).astype(np.int64)
        for step in range(first_step, self.steps_per_epoch):
            chosen = order[bounds[step] : bounds[step + 1]]
            yield step, len(chosen), self._step(self._users[chosen], self._items[chosen], phase, epoch, step)

    def _step(self, users: IntArray, positives: IntArray, *counters: str | int) -> float:
        draw = self._sampler.draw(users, *counters)
        found = self._model.look_up(users, np.concatenate([positives, draw.items.reshape(-1)]), self._seed, *counters)
        own, others = found.items[: len(users)], found.items[len(users) :].reshape(*draw.items.shape, -1)
        hits = None if draw.hits is None else (torch.from_numpy(draw.hits[0]), torch.from_numpy(draw.hits[1]))
        positive = self._model.pair_scores(found.users, own[:, None])[:, 0]
        loss = binary_cross_entropy(positive, self._model.pair_scores(found.users, others), hits)
        loss.backward()  # type: ignore[no-untyped-call]
        self._model.step()
        return float(loss.detach())
