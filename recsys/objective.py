"""The steps of an epoch: look up, draw negatives, loss, gradient, update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.adaptive_temperature import AdaptiveTemperature
from recsys.losses import Negatives
from recsys.models.mf import MatrixFactorization
from recsys.rng import generator
from recsys.samplers import Draw, IntArray, NegativeSampler, epoch_order, log_popularity, user_order
from recsys.settings import FitSettings


class Objective:
    """A model, its training interactions and a loss.

    Attributes:
        count: interactions of an epoch.
        steps_per_epoch: batches of an epoch.
    """

    def __init__(self, model: MatrixFactorization, train: csr_array, settings: FitSettings, *, seed: int) -> None:
        self.count = int(train.nnz)
        self.steps_per_epoch = -(-self.count // settings.batch_size)
        self._model = model
        self._settings = settings
        self._lr = model.users.optimizer.lr
        self._seed = seed
        self._users = np.repeat(np.arange(train.shape[0], dtype=np.int64), np.diff(train.indptr))
        self._items = train.indices.astype(np.int64)
        self._indptr = train.indptr
        self._log_q = torch.from_numpy(log_popularity(train, by_user=settings.positives == "users"))
        self._sampler = NegativeSampler(train, settings.negatives, seed=seed) if settings.loss.needs_negatives else None
        adaptive = settings.loss.name == "adap_tau"
        self._temperature = AdaptiveTemperature(train, settings.loss.adaptation) if adaptive else None

    def state(self) -> dict[str, Tensor]:
        """What a resume in the middle of an epoch needs beside the model; empty for losses without a memory."""
        return {} if self._temperature is None else self._temperature.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        if self._temperature is not None:
            self._temperature.load_state(state)

    def knowledge(self) -> dict[str, IntArray]:
        """What the negatives know of the interactions: of a sampler, or of the batches whose positives they are."""
        if self._sampler is not None:
            return self._sampler.knowledge()
        return {"counts": np.bincount(self._items, minlength=len(self._log_q)).astype(np.int64)}

    def set_lr(self, epoch: int) -> None:
        """Give the model its learning rate of an epoch, 0-based."""
        if self._settings.lr_decay != 1.0:
            self._model.set_lr(self._lr * self._settings.lr_share(epoch))

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """Train on the batches of an epoch from ``first_step`` on.

        Args:
            phase: names the random streams, with the epoch and the step.
            epoch: 0-based.
            first_step: batches already done before the process was killed.

        Yields:
            (step, positives in the batch, mean loss before the update).
        """
        self.set_lr(epoch)
        if self._temperature is not None and first_step == 0:
            self._temperature.start_epoch(epoch, self._model)
        named: Any = {"seed": self._seed, "phase": phase, "epoch": epoch}
        by_user = self._settings.positives == "users"
        order = user_order(self._indptr, **named) if by_user else epoch_order(self.count, **named)
        bounds = np.linspace(0, self.count, self.steps_per_epoch + 1).astype(np.int64)  # near-equal batches, no crumb
        for step in range(first_step, self.steps_per_epoch):
            chosen = order[bounds[step] : bounds[step + 1]]
            yield step, len(chosen), self._step(self._users[chosen], self._items[chosen], phase, epoch, step)

    def _step(self, users: IntArray, positives: IntArray, *counters: str | int) -> float:
        model, parts = self._model, self._parts(users, *counters)
        ids = np.concatenate([positives, *(draw.items.reshape(-1) for _, draw in parts if draw is not None)])
        found = model.look_up(users, ids, self._seed, *counters)
        looked_up = [found.users, found.items, *found.extras]
        # The loss sees leaves: its gradient is whole, and may be clipped, before a table fuses it into its update.
        leaves = [vectors.detach().requires_grad_() for vectors in looked_up]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._settings.precision == "bfloat16"):
            user, item = model.represent(self._drop(leaves[0], *counters)), model.represent(leaves[1])
            sizes = [group.stop - group.start for group, _ in parts]
            counts = [0 if draw is None else draw.items.size for _, draw in parts]
            # The backward of a split is one join, that of slices a sum of zeros.
            own, items, value = torch.split(user, sizes), torch.split(item, sizes + counts), torch.zeros(())
            for at, (group, draw) in enumerate(parts):
                rows = own[at], items[at], items[len(parts) + at]
                value = value + self._loss(users[group], positives[group], *rows, draw) * (sizes[at] / len(positives))
        if found.extra_loss is not None:
            value = value + found.extra_loss(leaves[2:])
        value.backward()  # type: ignore[no-untyped-call]
        if self._settings.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves, self._settings.gradient_clip_norm)
        torch.autograd.backward(looked_up, [leaf.grad for leaf in leaves])
        model.step()
        return float(value.detach())

    def _parts(self, users: IntArray, *counters: str | int) -> list[tuple[slice, Draw | None]]:
        """The groups of a batch with their negatives; the first draws as an undivided batch does."""
        if self._sampler is None:
            return [(slice(0, len(users)), None)]
        groups = self._settings.negatives.groups(len(users))
        names = [counters, *((*counters, number) for number in range(1, len(groups)))]
        return [(group, self._sampler.draw(users[group], *name)) for group, name in zip(groups, names, strict=True)]

    def _loss(
        self, users: IntArray, positives: IntArray, user: Tensor, item: Tensor, drawn: Tensor, draw: Draw | None
    ) -> Tensor:
        """Mean loss of positives that share a draw."""
        negatives = None
        if draw is not None:
            hits = None if draw.hits is None else (torch.from_numpy(draw.hits[0]), torch.from_numpy(draw.hits[1]))
            negatives = Negatives(drawn.reshape(*draw.items.shape, -1), torch.from_numpy(draw.log_q), hits)
        if self._temperature is not None and negatives is not None:
            self._temperature.observe(users, user, item, negatives)
        return self._settings.loss(
            user,
            item,
            torch.from_numpy(positives),
            negatives,
            self._log_q[torch.from_numpy(positives)],
            users_B=torch.from_numpy(users),
            temperatures=None if self._temperature is None else self._temperature.of(users),
        )

    def _drop(self, user: Tensor, *counters: str | int) -> Tensor:
        """The users' raw vectors with a share of their numbers at 0 and the others scaled up (inverted dropout)."""
        share = self._settings.loss.user_dropout
        if share == 0.0:
            return user
        rng = generator(self._seed, "user_dropout", *counters)
        keep = rng.random(tuple(user.shape), dtype=np.float32) >= share
        return user * torch.from_numpy(keep.astype(np.float32) / np.float32(1.0 - share))
