"""Adap-tau's temperatures against the formula by hand, and a training that is killed in the middle of an epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.special import lambertw
from test_trainer import SETTINGS, assert_same_bits, make_model, planted, timeless, weights
from torch import Tensor

from recsys.adaptive_temperature import AdaptiveTemperature
from recsys.losses import Adaptation, Loss, Negatives
from recsys.models.lightgcn import LightGcn
from recsys.objective import Objective
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings
from recsys.trainer import fit
from tests.recsys.graph_fixture import tables


@dataclasses.dataclass
class Fixed:
    """A model of given unit vectors."""

    users: Tensor
    items: Tensor

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    def user_vectors(self, users: np.ndarray) -> Tensor:
        return self.users[torch.from_numpy(users)]

    def compared_items(self, items: range) -> Tensor:
        return self.items[items.start : items.stop]

    def scores(self, users: np.ndarray) -> Tensor:
        return self.user_vectors(users) @ self.items.T


TRAIN = csr_array((np.ones(8, np.float32), np.array([0, 0, 1, 2, 3, 0, 2, 3]), np.array([0, 1, 3, 5, 8])), shape=(4, 8))
"""Degrees 1, 2, 2, 3: the 20 % quantile is 1.6, so user 0 is not active."""


def unit(count: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)))


def test_the_warm_up_assumes_a_gap_of_0_7_between_the_active_users() -> None:
    temperature = AdaptiveTemperature(TRAIN, Adaptation(warmup_epochs=1))
    temperature.start_epoch(0, Fixed(unit(4, 0), unit(8, 1)))
    given = temperature.of(np.array([0, 3, 3]))
    assert given.positive == pytest.approx(max(math.log(3 * 8 / (2 * 7)) / 0.7, 1.0))
    assert given.negatives.tolist() == pytest.approx([given.positive] * 3)


def test_after_it_the_gap_of_the_scores_counts() -> None:
    sparse = csr_array((TRAIN.data, TRAIN.indices, TRAIN.indptr), shape=(4, 400))
    model = Fixed(unit(4, 0), unit(400, 1))
    model.items[:4] = torch.nn.functional.normalize(model.users[:4] + 0.3 * model.items[:4])
    temperature = AdaptiveTemperature(sparse, Adaptation(warmup_epochs=1))
    temperature.start_epoch(1, model)
    scores = model.scores(np.arange(4)).double().numpy()
    positive = np.mean([scores[u, i] for u, i in zip(*TRAIN.nonzero(), strict=True) if u != 0])
    gap = max(positive - scores[1:].mean(), 0.05)
    assert temperature.of(np.array([2])).positive == pytest.approx(math.log(3 * 400 / 14) / gap, rel=1e-5)


def test_temperatures_do_not_depend_on_how_items_are_served() -> None:
    """``norm_exponent`` scales the vectors of a trained model, and so no bit of the training differs."""
    train = csr_array((np.random.default_rng(1).random((30, 2000)) < 0.01).astype(np.float32))
    loss = Loss("adap_tau", adaptation=Adaptation(warmup_epochs=0, beta=0.5))
    settings = FitSettings(loss, NegativeSampling(count=64), batch_size=64, epochs=3)
    trained = []
    for exponent in (0.0, 1.0):
        model = LightGcn(*tables(train), layers=2, similarity="cosine", norm_exponent=exponent)
        fit(model, train, None, settings, seed=0)
        trained.append(weights(model))
    assert_same_bits(*trained)


@pytest.mark.parametrize("quantile", [None, 0.9])
def test_a_user_with_a_high_loss_gets_a_high_temperature(quantile: float | None) -> None:
    model = Fixed(unit(4, 0), unit(8, 1))
    temperature = AdaptiveTemperature(TRAIN, Adaptation(warmup_epochs=9, beta=0.2, quantile=quantile))
    temperature.start_epoch(0, model)
    users = np.array([0, 1, 1, 2, 2, 3, 3, 3])
    negatives = Negatives(model.items)
    positive = torch.linspace(-1, 1, 8)[:, None] * model.users[users]
    for part in (slice(0, 5), slice(5, 8)):
        temperature.observe(users[part], model.users[users][part], positive[part], negatives)
    temperature.start_epoch(1, model)
    rows = np.log(np.exp(model.scores(users).numpy()).sum(1)) - torch.linspace(-1, 1, 8).numpy()
    losses = np.array([rows[users == u].mean() for u in range(4)])
    base = losses.mean() if quantile is None else np.quantile(losses, quantile)
    given = temperature.of(np.arange(4))
    want = given.positive * np.exp(-lambertw(np.maximum((losses - base) / 0.2, -1 / math.e + 1e-15)).real)
    assert np.allclose(given.negatives.numpy(), want, rtol=1e-5)
    assert (np.argsort(given.negatives.numpy()) == np.argsort(-losses)).all()


def test_positives_without_a_negative_do_not_count_for_temperatures() -> None:
    """User 3 has a positive that loses all negatives, user 1 has none that keeps one: the common temperature."""
    model = Fixed(unit(4, 0), unit(8, 1))
    users, positive = np.array([0, 1, 2, 3, 3]), torch.linspace(-1, 1, 5)[:, None]
    hits = torch.tensor([1, 1, 4, 4]), torch.tensor([0, 1, 0, 1])
    given = []
    for kept in (np.arange(5), np.array([0, 2, 3])):
        temperature = AdaptiveTemperature(TRAIN, Adaptation(warmup_epochs=9, beta=0.2))
        temperature.start_epoch(0, model)
        vectors = model.users[users[kept]]
        negatives = Negatives(model.items[:2], hits=hits if len(kept) == 5 else None)
        temperature.observe(users[kept], vectors, positive[kept] * vectors, negatives)
        temperature.start_epoch(1, model)
        given.append(temperature.of(np.arange(4)))
    assert given[0].negatives.tolist() == given[1].negatives.tolist()
    assert torch.isfinite(given[0].negatives).all() and given[0].negatives[1] == np.float32(given[0].positive)
    assert given[0].negatives[0] < given[0].positive < given[0].negatives[3]


@pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
def test_dense_or_tiny_data_keep_a_positive_temperature_of_at_most_1(shape: tuple[int, int]) -> None:
    full = csr_array(np.ones(shape, np.float32))
    temperature = AdaptiveTemperature(full, Adaptation(warmup_epochs=0, beta=0.5))
    for epoch in range(2):
        temperature.start_epoch(epoch, Fixed(unit(shape[0], 0), unit(shape[1], 1)))
        assert temperature.of(np.array([0])).positive == 1.0


SETTINGS_ADAP_TAU = dataclasses.replace(
    SETTINGS, loss=Loss("adap_tau", adaptation=Adaptation(1, 0.5), user_dropout=0.1), epochs=3
)


class _KilledError(Exception):
    pass


def test_a_training_killed_inside_an_epoch_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temperatures and losses of the running epoch come back: they cannot be told from the vectors any more."""
    train, valid = planted()
    settings = dataclasses.replace(SETTINGS_ADAP_TAU, checkpoint_minutes=0.0)
    whole = make_model()
    expected = fit(whole, train, valid, settings, seed=3)
    original = Objective.steps

    def killed(self: Objective, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        for done in original(self, phase, epoch, first_step):
            yield done
            if (phase, epoch, done[0]) == ("select", 1, 1):
                raise _KilledError

    monkeypatch.setattr(Objective, "steps", killed)
    with pytest.raises(_KilledError):
        fit(make_model(), train, valid, settings, seed=3, checkpoint_dir=tmp_path)
    monkeypatch.setattr(Objective, "steps", original)
    resumed = make_model()
    rarely = dataclasses.replace(settings, checkpoint_minutes=1.0)
    result = fit(resumed, train, valid, rarely, seed=3, checkpoint_dir=tmp_path)
    assert timeless(result) == timeless(expected)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


@pytest.mark.parametrize("change", [{"adaptation": Adaptation(2)}, {"user_dropout": 0.0}])
def test_user_wise_temperatures_and_dropout_change_the_training(change: dict[str, object]) -> None:
    train, valid = planted()
    plain = dataclasses.replace(SETTINGS_ADAP_TAU, loss=dataclasses.replace(SETTINGS_ADAP_TAU.loss, **change))  # type: ignore[arg-type]
    runs = [timeless(fit(make_model(), train, valid, settings, seed=3)) for settings in (SETTINGS_ADAP_TAU, plain)]
    assert runs[0] != runs[1]
