from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recsys.checkpoint import load_model, save_model
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.rng import generator
from recsys.sequence_trainer import SequenceData
from recsys.sequences import Sequences
from recsys.settings import EpochRecord, Selection
from recsys.tiger_trainer import NextCodes, TigerSettings, fit_tiger
from recsys.training_state import CheckpointError
from tests.recsys.tiger_fixture import codes

USERS, ITEMS, EVENTS = 24, 6, 5
SETTINGS = TigerSettings(lr=0.02, warmup_steps=10, batch_size=96, epochs=60, selection=Selection("recall@1", 60, 3))


def walks(length: int) -> Sequences:
    """User u starts at item u and steps by one: only the last item tells the next one."""
    items = (np.arange(USERS)[:, None] + np.arange(length)[None, :]) % ITEMS
    return Sequences.of_events(np.repeat(np.arange(USERS), length), items.reshape(-1), USERS)


def next_items(length: int) -> csr_array:
    columns = (np.arange(USERS) + length) % ITEMS
    return csr_array((np.ones(USERS, np.float32), (np.arange(USERS), columns)), shape=(USERS, ITEMS))


def fresh(dropout: float = 0.1) -> Tiger:
    shape = T5Shape(dim=16, layers=1, heads=2, head_dim=8, inner=32)
    return Tiger(codes(ITEMS), walks(1), shape, Reading(4), beam=6, dropout=dropout, generator=generator(0, "init"))


def data() -> SequenceData:
    return SequenceData(walks(EVENTS), next_items(EVENTS), walks(EVENTS + 1))


def test_it_learns_what_comes_next_and_keeps_it_on_disk(tmp_path: Path) -> None:
    model = fresh()
    result = fit_tiger(model, data(), SETTINGS, seed=0)
    selected = [record for record in result.history if record.phase == "select"]
    assert max(record.metrics.get("recall@1", 0.0) for record in selected) == 1.0
    assert selected[-1].loss < selected[0].loss / 2
    assert np.array_equal(model.histories.items, walks(EVENTS + 1).items)
    best = model.scores(np.arange(USERS)).argmax(1).numpy()
    assert np.array_equal(best, (np.arange(USERS) + EVENTS + 1) % ITEMS)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, Tiger) and again.codes.version == model.codes.version
    assert torch.equal(again.scores(np.arange(USERS)), model.scores(np.arange(USERS)))


def test_every_event_but_the_first_is_a_target_and_reads_those_before_it() -> None:
    steps = NextCodes(fresh(), walks(EVENTS), SETTINGS, seed=0)
    assert steps.count == USERS * (EVENTS - 1)
    assert steps.steps_per_epoch == -(-steps.count // SETTINGS.batch_size)
    seen = [size for _, size, _ in steps.steps("select", 0, 0)]
    assert sum(seen) == steps.count


def test_the_loss_is_the_mean_negative_log_probability_of_the_codes() -> None:
    """Before the first update, without dropout, over all targets in one batch."""
    model = fresh(dropout=0.0)
    expected = []
    for user in range(USERS):
        for place in range(1, EVENTS):
            model.histories = Sequences.of_events(np.full(place, user), (user + np.arange(place)) % ITEMS, USERS)
            target = np.array([(user + place) % ITEMS])
            expected.append(-model.path_log_probabilities(user, target).mean().item())
    whole = TigerSettings(batch_size=10_000)
    ((_, _, loss),) = NextCodes(model, walks(EVENTS), whole, seed=0).steps("select", 0, 0)
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_products_in_bfloat16_give_nearly_the_same_loss() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        settings = TigerSettings(batch_size=10_000, precision=precision)  # type: ignore[arg-type]
        ((_, _, loss),) = NextCodes(fresh(dropout=0.0), walks(EVENTS), settings, seed=0).steps("select", 0, 0)
        losses.append(loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


class KilledError(Exception):
    """Stands for a signal that ends the process after an epoch's checkpoint."""


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = TigerSettings(
        lr=0.01, warmup_steps=5, batch_size=32, epochs=3, selection=Selection("recall@1", 1, 3), checkpoint_minutes=0.0
    )
    whole = fresh()
    expected = fit_tiger(whole, data(), settings, seed=0)

    def kill_at(epoch: int, phase: str) -> None:
        def on_epoch(record: EpochRecord) -> None:
            if (record.epoch, record.phase) == (epoch, phase):
                raise KilledError

        with pytest.raises(KilledError):
            fit_tiger(fresh(), data(), settings, seed=0, checkpoint_dir=tmp_path, on_epoch=on_epoch)

    kill_at(2, "select")
    kill_at(1, "refit")
    resumed = fresh()
    found = fit_tiger(resumed, data(), settings, seed=0, checkpoint_dir=tmp_path)
    assert found.best_epoch == expected.best_epoch
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        fit_tiger(fresh(dropout=0.2), data(), settings, seed=0, checkpoint_dir=tmp_path)


def test_a_resume_in_the_middle_of_an_epoch_gives_the_same_bits() -> None:
    whole, half, settings = fresh(), fresh(), TigerSettings(batch_size=25)
    steps = NextCodes(whole, walks(EVENTS), settings, seed=0)
    losses = [loss for _, _, loss in steps.steps("select", 0, 0)]
    first = NextCodes(half, walks(EVENTS), settings, seed=0)
    running = first.steps("select", 0, 0)
    for _ in range(2):
        next(running)
    second = NextCodes(half, walks(EVENTS), settings, seed=0)
    second.load_state(first.state())
    assert [loss for _, _, loss in second.steps("select", 0, 2)] == losses[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_the_learning_rate_rises_to_its_highest_and_falls_as_the_root() -> None:
    settings = TigerSettings(lr=0.5, warmup_steps=10)
    assert [settings.lr_at(step) for step in (1, 5, 10, 40, 1000)] == pytest.approx([0.05, 0.25, 0.5, 0.25, 0.05])
    assert TigerSettings(lr=0.5, warmup_steps=0).lr_at(1) == 0.5


def test_some_of_the_users_can_select() -> None:
    """With one user the metric is 0 or 1."""
    settings = TigerSettings(batch_size=32, epochs=1, selection=Selection("recall@5", 1), validation_users=1)
    result = fit_tiger(fresh(), data(), settings, seed=0)
    assert result.history[0].metrics["recall@5"] in (0.0, 1.0)


def test_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="train must have the model's 24 users, got 2"):
        few = Sequences.of_events(np.array([0]), np.array([0]), 2)
        fit_tiger(fresh(), SequenceData(few, None, few), SETTINGS, seed=0)
    with pytest.raises(ValueError, match="TIGER learns from users with at least 2 events, but none of 24 has"):
        fit_tiger(fresh(), SequenceData(walks(1), None, walks(1)), SETTINGS, seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_scores_and_learns() -> None:
    model = fresh(dropout=0.0)
    expected = model.scores(np.arange(USERS))
    model.to("cuda")
    assert torch.allclose(model.scores(np.arange(USERS)), expected, atol=1e-3)
    result = fit_tiger(fresh().to("cuda"), data(), SETTINGS, seed=0)
    assert max(record.metrics.get("recall@1", 0.0) for record in result.history) == 1.0
