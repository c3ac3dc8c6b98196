"""The steps of a two-tower model: candidates, correction, self-supervision, update."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.feature_masks import drop_features
from recsys.histories import Context, Histories
from recsys.item_ssl import ItemSsl, ItemSslTerm
from recsys.losses import Negatives, sampled_softmax
from recsys.models.two_tower import TwoTower
from recsys.rng import generator
from recsys.samplers import IntArray, epoch_order
from recsys.settings import Selection
from recsys.streaming_frequency import StreamingFrequency
from recsys.tower_losses import candidate_softmax


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a positive is compared with in the softmax.

    Attributes:
        name: "in_batch": the distinct items of the batch; "sampled": items drawn uniformly from the catalogue;
            "mixed": both (Yang et al. 2020).
        count: items drawn in a step, for "sampled" and "mixed".
        logq: how often the batch offers an item: "streaming" estimates it, "exact" counts the training events, "none"
            leaves the correction out. Uniform draws have a known probability.
        hardness: how much more hard negatives count, not for "sampled"; see
            :func:`recsys.tower_losses.candidate_softmax`.
        slots: size of the hash arrays of the streaming estimate.
        rate: of the streaming estimate.
    """

    name: Literal["in_batch", "sampled", "mixed"] = "mixed"
    count: int = 512
    logq: Literal["streaming", "exact", "none"] = "streaming"
    hardness: float = 0.0
    slots: int = 1 << 20
    rate: float = 0.05


@dataclasses.dataclass(frozen=True)
class TowerSettings:
    """The training of a two-tower model.

    Attributes:
        candidates: of the softmax.
        context: which of a user's items an event is predicted from.
        user_dropout: probability with which a step masks each feature of a user.
        item_dropout: the same for the items, so that the tower learns to do without an id (Volkovs et al. 2017).
        ssl: self-supervised term of the item tower.
        batch_size: events per step.
        epochs: at most.
        selection: early stopping, used when there is validation data.
        checkpoint_minutes: between checkpoints.
    """

    candidates: Candidates = Candidates()
    context: Context = "others"
    user_dropout: float = 0.0
    item_dropout: float = 0.0
    ssl: ItemSsl | None = None
    batch_size: int = 1024
    epochs: int = 100
    selection: Selection = dataclasses.field(default_factory=Selection)
    checkpoint_minutes: float = 1.0

    @property
    def remedy(self) -> str:
        """What to try against a loss that is not finite."""
        return "a smaller optimizer.lr or dense_lr, or a higher loss.temperature"

    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "checkpoint_minutes"}


class TowerObjective:
    """A two-tower model, the events that it learns from, and the softmax; :class:`recsys.loop.Steps`.

    Attributes:
        count: events of an epoch.
        steps_per_epoch: batches of an epoch.
    """

    def __init__(
        self,
        model: TwoTower,
        histories: Histories,
        settings: TowerSettings,
        *,
        affinity: npt.NDArray[np.float64] | None,
        seed: int,
    ) -> None:
        self.count = len(histories.items)
        self.steps_per_epoch = -(-self.count // settings.batch_size)
        self._model = model
        self._histories = histories
        self._owners = histories.owners
        self._settings = settings
        self._seed = seed
        chosen = settings.candidates
        self._frequency = StreamingFrequency(
            model.num_items, slots=chosen.slots, rate=chosen.rate, initial_gap=self.steps_per_epoch, seed=seed
        )
        shares = np.bincount(histories.items, minlength=model.num_items) / max(1, self.count)
        size = self.count / self.steps_per_epoch
        self._offered = (-np.expm1(size * np.log1p(-np.minimum(shares, 1 - 1e-12)))).astype(np.float32)
        self._ssl: ItemSslTerm | None = None
        if settings.ssl is not None:
            lr = model.adam.lr
            self._ssl = ItemSslTerm(model.items, settings.ssl, affinity=affinity, seed=seed, lr=lr)

    def state(self) -> dict[str, Tensor]:
        """What a resume in the middle of an epoch needs beside the model."""
        state = {f"frequency.{name}": tensor for name, tensor in self._frequency.state().items()}
        if self._ssl is not None:
            state |= {f"ssl.{name}": tensor for name, tensor in self._ssl.state_dict().items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self._frequency.load_state({name: state[f"frequency.{name}"] for name in ("last", "gap")})
        if self._ssl is not None:
            self._ssl.load_state_dict({name[4:]: part for name, part in state.items() if name.startswith("ssl.")})

    def knowledge(self) -> dict[str, IntArray]:
        """What the candidates know of the interactions: how often each item is an event, int64 [items]."""
        return {"counts": np.bincount(self._histories.items, minlength=self._model.num_items).astype(np.int64)}

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """Train on the batches of an epoch (0-based) from ``first_step`` on.

        Yields:
            (step, events in the batch, mean loss before the update, the self-supervised term included).
        """
        order = epoch_order(self.count, seed=self._seed, phase=phase, epoch=epoch)
        bounds = np.linspace(0, self.count, self.steps_per_epoch + 1).astype(np.int64)
        for step in range(first_step, self.steps_per_epoch):
            places = order[bounds[step] : bounds[step + 1]]
            yield step, len(places), self._step(places, epoch * self.steps_per_epoch + step + 1, phase, epoch, step)

    def _step(self, places: IntArray, number: int, *counters: str | int) -> float:
        model, settings = self._model, self._settings
        users, items = self._owners[places], self._histories.items[places]
        batch, target = np.unique(items, return_inverse=True)
        self._frequency.observe(batch, number)
        rng = generator(self._seed, "two tower", *counters)
        drawn = np.empty(0, dtype=np.int64)
        if settings.candidates.name != "in_batch":
            drawn = rng.integers(0, model.num_items, settings.candidates.count, dtype=np.int64)
        if settings.candidates.name == "mixed":
            drawn = np.setdiff1d(drawn, batch)
        chosen = np.concatenate([batch, drawn])
        item = model.encode_items(drop_features(model.items.features.take(chosen), settings.item_dropout, rng))
        history = None
        if model.history_length:
            history = self._histories.around(places, users, model.history_length, settings.context)
        user = model.encode_users(drop_features(model.users.features.take(users), settings.user_dropout, rng), history)
        value = self._loss(user, item, chosen, target, len(batch))
        if self._ssl is not None:
            value = value + self._ssl.loss(*counters)
        value.backward()  # type: ignore[no-untyped-call]
        model.step()
        if self._ssl is not None:
            self._ssl.step()
        return float(value.detach())

    def _loss(self, user: Tensor, item: Tensor, chosen: IntArray, target: IntArray, in_batch: int) -> Tensor:
        """The softmax; the first ``in_batch`` of the chosen items are those of the batch."""
        candidates, temperature = self._settings.candidates, self._model.temperature
        targets = torch.from_numpy(target)
        if candidates.name == "sampled":
            hits = np.nonzero(chosen[in_batch:][None, :] == chosen[target][:, None])
            rows, columns = (torch.from_numpy(np.ascontiguousarray(part)) for part in hits)
            log_q = torch.full((len(chosen) - in_batch,), -float(np.log(self._model.num_items)))
            negatives = Negatives(item[in_batch:], log_q, (rows, columns))
            logq = candidates.logq != "none"
            return sampled_softmax(
                user / temperature, item.index_select(0, targets), negatives, temperature=1.0, logq=logq
            )
        log_q_C = None if candidates.logq == "none" else torch.from_numpy(self._log_offered(chosen))
        return candidate_softmax(user, item, targets, log_q_C, temperature=temperature, hardness=candidates.hardness)

    def _log_offered(self, chosen: IntArray) -> npt.NDArray[np.float32]:
        """Log of the probability that a step offers each item, by its batch or by a uniform draw; it does so once."""
        candidates = self._settings.candidates
        if candidates.logq == "exact":
            offered = np.maximum(self._offered[chosen], np.float32(1e-12))
        else:
            offered = np.exp(self._frequency.log_probability(chosen))
        if candidates.name == "mixed":
            offered = 1 - (1 - offered) * (1 - 1 / self._model.num_items) ** candidates.count
        return np.log(offered).astype(np.float32)
