from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.semantic_id.codes import SemanticCodes
from recsys.models.rpg import Rpg
from recsys.rpg_trainer import NextId, fit_rpg
from recsys.sequence_trainer import ReaderSettings, SequenceData
from recsys.settings import EpochRecord, Selection
from recsys.training_state import CheckpointError
from tests.recsys.rpg_fixture import rpg
from tests.recsys.test_sequence_trainer import EVENTS, ITEMS, USERS, data, walks


def fresh(dropout: float = 0.1) -> Rpg:
    return rpg(walks(EVENTS), ITEMS, dropout=dropout, std=0.1, heads=0.0, temperature=0.1)


def settings(epochs: int = 4, clip: float | None = None) -> ReaderSettings:
    return ReaderSettings(
        lr=0.02, batch_size=16, epochs=epochs, selection=Selection("ndcg@5", 2, 5), gradient_clip_norm=clip,
        checkpoint_minutes=1e-9,
    )  # fmt: skip


def state(model: Rpg) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_id_of_the_next_item_is_learned() -> None:
    model = fresh(dropout=0.0)
    fit_rpg(model, SequenceData(walks(EVENTS + 1), None, walks(EVENTS)), settings(epochs=60, clip=5.0), seed=0)
    following = (np.arange(USERS) + EVENTS) % ITEMS
    best = model.scores(np.arange(USERS)).argmax(1).numpy()
    assert (model.codes.codes[best] == model.codes.codes[following]).all(1).mean() > 0.95


def test_a_training_killed_at_any_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    whole = fresh()
    result = fit_rpg(whole, data(), settings(), seed=0)
    calls = itertools.count()

    def kill(record: EpochRecord) -> None:
        if next(calls) in (0, 1, 4):
            raise KilledError

    for _ in range(4):
        resumed = fresh()
        try:
            again = fit_rpg(resumed, data(), settings(), seed=0, checkpoint_dir=tmp_path, on_epoch=kill)
        except KilledError:
            continue
    assert [a.loss for a in again.history] == [b.loss for b in result.history]
    assert {record.phase for record in again.history} == {"select", "refit"}
    assert all(torch.equal(value, state(resumed)[name]) for name, value in state(whole).items())


def test_a_step_in_the_middle_of_an_epoch_resumes_with_the_same_bits() -> None:
    whole, resumed = fresh(), fresh()
    first = NextId(whole, walks(EVENTS), settings(), seed=0)
    steps = first.steps("select", 0, 0)
    next(steps), next(steps)
    kept, moments = state(whole), {name: value.clone() for name, value in first.state().items()}
    list(steps)
    resumed.load_state_dict(kept)
    second = NextId(resumed, walks(EVENTS), settings(), seed=0)
    second.load_state(moments)
    assert [step for step, _, _ in second.steps("select", 0, 2)] == [2, 3]
    assert all(torch.equal(value, state(resumed)[name]) for name, value in state(whole).items())


def test_a_training_with_other_codes_or_another_temperature_is_not_resumed(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(record: EpochRecord) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        fit_rpg(fresh(), data(), settings(), seed=0, checkpoint_dir=tmp_path, on_epoch=kill)
    other = fresh()
    moved = SemanticCodes(other.codes.codes[::-1].copy(), other.codes.widths)
    rest = other.tokens, other.encoder, other.histories
    for codes, temperature in ((moved, other.temperature), (other.codes, 2 * other.temperature)):
        with pytest.raises(CheckpointError, match="belongs to another configuration"):
            fit_rpg(Rpg(codes, *rest, temperature=temperature), data(), settings(), seed=0, checkpoint_dir=tmp_path)
