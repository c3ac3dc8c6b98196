from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recsys.models.sequence_model import SequenceModel
from recsys.samplers import NegativeSampling
from recsys.sequence_augmentation import Augmentation
from recsys.sequence_losses import SequenceLoss, SequenceLossName
from recsys.sequence_trainer import NextItem, SequenceData, SequenceSettings, fit_sequences
from recsys.sequences import Sequences
from recsys.settings import EpochRecord, Selection
from recsys.training_state import CheckpointError
from tests.recsys.sequence_fixture import full_table, sasrec

USERS, ITEMS, EVENTS = 60, 12, 6


def walks(length: int) -> Sequences:
    """User u starts at item u and steps by one: only the order of the last item tells the next one."""
    items = (np.arange(USERS)[:, None] + np.arange(length)[None, :]) % ITEMS
    return Sequences.of_events(np.repeat(np.arange(USERS), length), items.reshape(-1), USERS)


def next_items(length: int) -> csr_array:
    users = np.arange(USERS)
    return csr_array((np.ones(USERS, np.float32), (users, (users + length) % ITEMS)), shape=(USERS, ITEMS))


def data() -> SequenceData:
    return SequenceData(walks(EVENTS), next_items(EVENTS), walks(EVENTS + 1))


def model() -> SequenceModel:
    return SequenceModel(full_table(ITEMS, 8, std=0.1, lr=0.02), sasrec(dropout=0.1, max_length=8), walks(EVENTS))


def settings(
    loss: SequenceLossName = "sampled_softmax", *, epochs: int = 4, shared: bool = True, refit: bool = True,
    clip: float | None = None,
) -> SequenceSettings:  # fmt: skip
    return SequenceSettings(
        loss=SequenceLoss(loss), negatives=NegativeSampling(count=6 if shared else 1, shared=shared), lr=0.02,
        batch_size=16,
        epochs=epochs, selection=Selection("ndcg@5", 2, 5, refit=refit), gradient_clip_norm=clip,
        checkpoint_minutes=1e-9,
    )  # fmt: skip


def test_the_next_item_of_a_walk_is_learned() -> None:
    trained = model()
    sequences = SequenceData(walks(EVENTS), None, walks(EVENTS + 1))
    fit_sequences(trained, sequences, settings(epochs=40, clip=5.0), seed=0)
    assert trained.histories.lengths.tolist() == [EVENTS + 1] * USERS
    best = trained.scores(np.arange(USERS)).argmax(1).numpy()
    assert (best == (np.arange(USERS) + EVENTS + 1) % ITEMS).mean() > 0.95


@pytest.mark.parametrize(("loss", "shared"), [("softmax", True), ("gbce", True), ("bce", False)])
def test_every_loss_falls(loss: SequenceLossName, shared: bool) -> None:
    sequences = SequenceData(walks(EVENTS), None, walks(EVENTS + 1))
    history = fit_sequences(model(), sequences, settings(loss, epochs=8, shared=shared), seed=0).history
    assert history[-1].loss < 0.9 * history[0].loss


def state(trained: SequenceModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.state_dict().items()}


def test_a_training_killed_at_any_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    whole = model()
    result = fit_sequences(whole, data(), settings(), seed=0)
    resumed = model()
    calls = itertools.count()

    def kill(record: EpochRecord) -> None:
        if next(calls) in (0, 1, 4):
            raise KilledError

    for _ in range(4):
        resumed = model()
        try:
            again = fit_sequences(resumed, data(), settings(), seed=0, checkpoint_dir=tmp_path, on_epoch=kill)
        except KilledError:
            continue
    assert again.best_epoch == result.best_epoch and len(again.history) == len(result.history)
    assert [a.loss for a in again.history] == [b.loss for b in result.history]
    assert all(torch.equal(value, state(resumed)[name]) for name, value in state(whole).items())
    assert (tmp_path / "negatives-refit.safetensors").exists()


def test_a_training_of_another_model_over_equal_tensors_is_not_resumed(tmp_path: Path) -> None:
    brief = dataclasses.replace(settings(), epochs=1)
    fit_sequences(model(), data(), brief, seed=0, checkpoint_dir=tmp_path)
    items, read = model().items, walks(EVENTS)
    others = (
        SequenceModel(items, sasrec(dropout=0.2, max_length=8), read),
        SequenceModel(items, sasrec(dropout=0.1, max_length=8, heads=4), read),
        SequenceModel(items, sasrec(dropout=0.1, max_length=8), read, similarity="cosine"),
    )
    for other in others:
        with pytest.raises(CheckpointError, match="belongs to another configuration"):
            fit_sequences(other, data(), brief, seed=0, checkpoint_dir=tmp_path)


def test_a_step_in_the_middle_of_an_epoch_resumes_with_the_same_bits() -> None:
    whole, resumed = model(), model()
    first = NextItem(whole, walks(EVENTS), settings(), seed=0)
    steps = first.steps("select", 0, 0)
    next(steps), next(steps)
    kept, moments = state(whole), {name: value.clone() for name, value in first.state().items()}
    list(steps)
    resumed.load_state_dict(kept)
    second = NextItem(resumed, walks(EVENTS), settings(), seed=0)
    second.load_state(moments)
    assert [step for step, _, _ in second.steps("select", 0, 2)] == [2, 3]
    assert all(torch.equal(value, state(resumed)[name]) for name, value in state(whole).items())


def test_the_refit_learns_from_validation_too() -> None:
    records: list[EpochRecord] = []
    fit_sequences(model(), data(), settings(), seed=0, on_epoch=records.append)
    assert {record.phase for record in records} == {"select", "refit"}
    steps = [NextItem(model(), walks(length), settings(), seed=0).count for length in (EVENTS, EVENTS + 1)]
    assert steps == [USERS * (EVENTS - 1), USERS * EVENTS]


def test_a_step_learns_from_varied_sequences_and_counts_those_it_was_given() -> None:
    varied = dataclasses.replace(settings(), augmentation=Augmentation(crop=1.0, shuffle=1.0))
    first, second = (NextItem(model(), walks(EVENTS), s, seed=0).steps("select", 0, 0) for s in (settings(), varied))
    plain, cropped = list(first), list(second)
    assert [size for _, size, _ in plain] == [size for _, size, _ in cropped]
    assert all(a[2] != b[2] for a, b in zip(plain, cropped, strict=True))


def test_data_that_do_not_fit_are_refused() -> None:
    short = Sequences.of_events(np.arange(USERS), np.zeros(USERS, np.int64), USERS)
    with pytest.raises(ValueError, match="users with at least 2 events, but none of 60 has"):
        fit_sequences(model(), SequenceData(short, None, short), settings(), seed=0)
    few = Sequences.of_events(np.zeros(3, np.int64), np.zeros(3, np.int64), 5)
    with pytest.raises(ValueError, match="train must have the model's 60 users, got 5"):
        fit_sequences(model(), SequenceData(few, None, few), settings(), seed=0)
    wide = Sequences(walks(EVENTS).items + np.int32(3), walks(EVENTS).offsets)
    with pytest.raises(ValueError, match=r"known must have items in \[0, 12\), the model's, got 14"):
        fit_sequences(model(), SequenceData(walks(EVENTS), None, wide), settings(), seed=0)
    with pytest.raises(
        ValueError, match=r"valid must have the model's shape \(60, 12\) \(users, items\), got \(5, 5\)"
    ):
        fit_sequences(model(), SequenceData(walks(EVENTS), csr_array((5, 5)), walks(EVENTS)), settings(), seed=0)
    with pytest.raises(ValueError, match="valid must have at least one interaction, got an empty matrix"):
        fit_sequences(model(), SequenceData(walks(EVENTS), csr_array((60, 12)), walks(EVENTS)), settings(), seed=0)
