from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recsys.dropout import Dropout
from recsys.jagged_attention import blocks
from recsys.models.hstu import HstuEncoder
from recsys.models.sasrec import SasRecEncoder
from recsys.models.sequence_model import Encoder
from recsys.rng import generator
from recsys.sequences import Batch
from tests.recsys.sequence_fixture import hstu, plain_hstu, plain_sasrec, sasrec, toy

ENCODERS: dict[str, Callable[[], Encoder]] = {
    "sasrec": sasrec,
    "hstu": hstu,
    "hstu-untimed": lambda: hstu(timed=False),
}
PLAIN: dict[str, Any] = {"sasrec": plain_sasrec, "hstu": plain_hstu, "hstu-untimed": plain_hstu}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_event_is_encoded_as_by_the_equations(name: str) -> None:
    """A batch of sequences of all lengths, some over the limit, against one sequence at a time in float64."""
    model = toy(ENCODERS[name]())
    users = np.flatnonzero(model.histories.lengths).astype(np.int64)
    batch = model.histories.last(users, model.encoder.max_length)
    vectors = model.items.vectors(torch.from_numpy(batch.items))
    found = model.encode(vectors, batch)
    assert batch.lengths.max() == model.encoder.max_length and batch.lengths.min() == 1
    for user, part in zip(users, np.split(np.arange(len(batch.items)), np.cumsum(batch.lengths)[:-1]), strict=True):
        assert batch.times is not None
        expected = PLAIN[name](model.encoder, vectors[part], batch.times[part])
        assert torch.allclose(found[part].double(), expected, atol=2e-5), f"user {user}"


@pytest.mark.parametrize("name", ENCODERS)
def test_the_future_changes_nothing_before_it(name: str) -> None:
    model = toy(ENCODERS[name]())
    batch = model.histories.last(np.array([2]), 20)
    vectors = model.items.vectors(torch.from_numpy(batch.items))
    changed = vectors.clone()
    changed[12:] = 3.0
    before, after = model.encode(vectors, batch), model.encode(changed, batch)
    assert torch.equal(before[:12], after[:12]) and not torch.allclose(before[12:], after[12:])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_user_is_told_by_the_last_events_only_and_one_without_any_by_zero(name: str) -> None:
    model = toy(ENCODERS[name]())
    vectors = model.user_vectors(np.arange(12))
    assert torch.equal(vectors[0], torch.zeros(8))
    recent = model.histories.last(np.arange(12), 20)
    shorter = type(model.histories)(recent.items.astype(np.int32), np.r_[0, np.cumsum(recent.lengths)], recent.times)
    model.histories = shorter
    assert torch.allclose(model.user_vectors(np.arange(12)), vectors, atol=1e-6)


def test_dropout_is_named_and_scaled() -> None:
    model = toy(sasrec(dropout=0.5))
    batch = model.histories.last(np.array([2]), 20)
    vectors = model.items.vectors(torch.from_numpy(batch.items))
    drawn = [model.encode(vectors, batch, generator(0, "dropout", step)) for step in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], model.encode(vectors, batch))


def test_blocks_cover_every_event_once_whatever_the_order_of_lengths() -> None:
    lengths = np.array([3, 8, 9, 40, 1, 17])
    found = blocks(lengths)
    assert [block.length for block in found] == [8, 9, 40, 1, 17]
    values = torch.arange(int(lengths.sum()), dtype=torch.float32)[:, None]
    assert torch.equal(torch.cat([block.unpad(block.pad(values[block.tokens])) for block in found]), values)
    assert found[0].pad(values[found[0].tokens])[0, :, 0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert blocks(np.zeros(0, np.int64)) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"heads": 3}, "heads must divide dim, got 3 heads for dim 8"),
        ({"layers": 0}, "max_length and layers must be at least 1, got 50 and 0"),
        ({"max_length": 0}, "must be at least 1, got 0"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    for encoder in (SasRecEncoder, HstuEncoder):
        with pytest.raises(ValueError, match=message):
            encoder(8, **parameters, generator=generator(0))


def test_an_hstu_that_knows_times_asks_for_them() -> None:
    model = toy(hstu())
    model.histories = type(model.histories)(model.histories.items, model.histories.offsets)
    with pytest.raises(ValueError, match="reads the times of events, but the sequences have none"):
        model.user_vectors(np.array([2]))


def test_an_encoder_is_abstract() -> None:
    assert Encoder.__abstractmethods__ == {"forward"}


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_on_several_threads_repeat_bit_for_bit(name: str) -> None:
    """The backward of plain indexing adds atomically, in any order, from 32768 numbers on."""
    rng = np.random.default_rng(0)
    wide: dict[str, Any] = {"max_length": 50, "dropout": 0.0, "generator": rng}
    encoder: Encoder = SasRecEncoder(32, **wide) if name == "sasrec" else HstuEncoder(32, timed=name == "hstu", **wide)
    lengths = np.full(64, 50, np.int64)
    times = np.sort(rng.integers(0, 10**7, lengths.sum()))
    batch = Batch(np.arange(64), np.zeros(lengths.sum(), np.int64), lengths, times)
    items, weights = (torch.from_numpy(rng.standard_normal((lengths.sum(), 32), np.float32)) for _ in range(2))

    def gradients() -> dict[str, torch.Tensor]:
        encoder.zero_grad()
        (encoder(items, batch, blocks(lengths), Dropout(0.0, None)) * weights).sum().backward()
        return {key: p.grad.clone() for key, p in encoder.named_parameters() if p.grad is not None}

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first, others = gradients(), [gradients() for _ in range(4)]
    finally:
        torch.set_num_threads(before)
    assert not {key for key in first for other in others if not torch.equal(first[key], other[key])}
