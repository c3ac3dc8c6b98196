from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.mlp import Mlp
from recsys.models.content_items import ContentItems
from recsys.models.sequence_model import SequenceModel
from recsys.sequence_trainer import NextItem, SequenceData, fit_sequences
from recsys.sequences import Sequences
from tests.recsys.sequence_fixture import sasrec
from tests.recsys.test_sequence_trainer import EVENTS, ITEMS, USERS, settings, walks


def content_items(lr: float = 0.02) -> ContentItems:
    """Item i is described by the angle i / ITEMS of a circle."""
    angle = 0.3 + 2 * np.pi * np.arange(ITEMS) / ITEMS
    waves = [wave(k * angle) for k in (1, 2, 3) for wave in (np.sin, np.cos)]
    content = torch.from_numpy(np.stack(waves, 1).astype(np.float32))
    return ContentItems(content, Mlp((6, 16, 8), np.random.default_rng(0)), lr=lr)


def test_a_vector_is_the_projected_content_and_a_step_is_one_of_adam() -> None:
    items = content_items(lr=0.1)
    ids = torch.tensor([3, 0, 3])
    weights = [parameter.detach().clone() for parameter in items.network.weights]
    hidden = torch.relu(items.content[ids] @ weights[0].T)
    assert torch.allclose(items.vectors(ids), hidden @ weights[1].T, atol=1e-6)
    items(ids).sum().backward()
    sign = [parameter.grad.sign() for parameter in items.network.weights]  # type: ignore[union-attr]
    items.step()
    for before, direction, after in zip(weights, sign, items.network.weights, strict=True):
        assert torch.allclose(after, before - 0.1 * direction, atol=1e-4)  # the first step of Adam
    assert items.bytes().weights == 4 * (ITEMS * 6 + 6 * 16 + 16 + 16 * 8 + 8)


def test_an_item_without_events_is_ranked_by_its_content() -> None:
    """Users step through the circle and never reach the last item, which follows the one before it all the same."""
    whole = walks(ITEMS)
    kept = whole.items < ITEMS - 1
    users = np.repeat(np.arange(USERS), whole.lengths)[kept]
    sequences = Sequences.of_events(users, whole.items[kept].astype(np.int64), USERS)
    model = SequenceModel(content_items(), sasrec(max_length=ITEMS), sequences, similarity="cosine")
    fit_sequences(model, SequenceData(sequences, None, sequences), settings(epochs=25), seed=0)
    reads = Sequences.of_events(np.zeros(4, np.int64), np.arange(ITEMS - 5, ITEMS - 1), USERS)
    model.histories = reads
    assert ITEMS - 1 in model.scores(np.array([0]))[0].topk(3).indices.tolist()


def test_a_resumed_step_gives_the_same_bits() -> None:
    whole, resumed = (SequenceModel(content_items(), sasrec(max_length=8), walks(EVENTS)) for _ in range(2))
    first = NextItem(whole, walks(EVENTS), settings(), seed=0)
    steps = first.steps("select", 0, 0)
    next(steps), next(steps)
    kept = {name: value.clone() for name, value in whole.state_dict().items()}
    moments = {name: value.clone() for name, value in first.state().items()}
    list(steps)
    resumed.load_state_dict(kept)
    second = NextItem(resumed, walks(EVENTS), settings(), seed=0)
    second.load_state(moments)
    list(second.steps("select", 0, 2))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_content_of_another_width_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"content must be float32 \[N, 6\], the width of its network, got .*\[12, 5\]"
    ):
        ContentItems(torch.zeros(12, 5), Mlp((6, 8), np.random.default_rng(0)))
