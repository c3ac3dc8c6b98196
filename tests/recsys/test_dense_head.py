"""LIGER: what the dense head adds to the loss and to the lists, against its equations."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.checkpoint import load_model, save_model
from recsys.mlp import Mlp
from recsys.models.dense_head import DenseHead, DenseSettings
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.rng import generator
from recsys.sequence_trainer import SequenceData
from recsys.sequences import Sequences
from recsys.settings import EpochRecord, Selection
from recsys.tiger_trainer import NextCodes, TigerSettings, fit_tiger
from recsys.topk import exact_top_k
from tests.recsys.tiger_fixture import (
    ITEMS,
    codes,
    head,
    histories,
    plain_decoder,
    plain_encoder,
    tiger,
)

USERS = np.arange(9)
COLD = [2, 11, 29]


def liger(candidates: int | None = 5) -> Tiger:
    """Untrained, as if all items but ``COLD`` had been trained on."""
    model = tiger(dense=head(DenseSettings(0.7, 0.2, candidates)))
    assert model.dense is not None
    model.dense.set_cold(Sequences.of_events(np.zeros(27, np.int64), np.delete(np.arange(ITEMS), COLD), 1))
    return model


def read_by_hand(model: Tiger, user: int, events: list[int]) -> Tensor:
    """The encoder's output [S, D]: codes, content by the projection's matrix, and the place from the last event."""
    assert model.dense is not None
    content = model.dense.content @ model.dense.network.weights[0].T + model.dense.network.biases[0]
    starts = 1 + np.array([0, 4, 8])
    row = model.transformer.embedding[13 + int(model._hash(np.array([user]))[0])]
    tokens = [row]
    for place, item in enumerate(events):
        beside = content[item] + model.dense.places[len(events) - 1 - place]
        tokens += [model.transformer.embedding[code] + beside for code in codes().codes[item] + starts]
    return plain_encoder(model.transformer, torch.stack(tokens))


def cosines(model: Tiger, user: int, events: list[int]) -> Tensor:
    """Of the encoder's last output with every item, float [N]."""
    assert model.dense is not None
    content = model.dense.content @ model.dense.network.weights[0].T + model.dense.network.biases[0]
    last = read_by_hand(model, user, events)[-1]
    return content @ last / content.norm(dim=1) / last.norm()


def known(user: int) -> list[int]:
    """What the model reads of a user of the fixture."""
    first, last = histories().offsets[user : user + 2]
    return histories().items[first:last][-4:].tolist()


def test_the_loss_is_that_of_the_codes_and_of_the_cosines_by_the_equations() -> None:
    """Over all targets in one batch, which is encoded in several blocks; cold items are no negatives."""
    model, sequences = liger(), histories()
    assert model.dense is not None
    model.dense.set_cold(sequences)
    warm = np.unique(sequences.items)
    assert len(warm) < ITEMS
    written, dense = [], []
    for user in USERS.tolist():
        first, last = sequences.offsets[user : user + 2]
        own = sequences.items[first:last].tolist()
        for place in range(1, len(own)):
            events, target = own[max(0, place - 4) : place], own[place]
            path = codes().codes[target] + 1 + np.array([0, 4, 8])
            logits = plain_decoder(model.transformer, read_by_hand(model, user, events), torch.tensor([0, *path[:-1]]))
            written += [-logits[level].log_softmax(0)[code] for level, code in enumerate(path.tolist())]
            scores = cosines(model, user, events) / 0.2
            dense.append(scores[warm].logsumexp(0) - scores[target])
    expected = torch.stack(written).mean() + 0.7 * torch.stack(dense).mean()
    expected.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    settings = TigerSettings(lr=1.0, warmup_steps=0, batch_size=10_000, gradient_clip_norm=None)
    steps = NextCodes(model, sequences, settings, seed=0)
    ((_, _, loss),) = steps.steps("select", 0, 0)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    # Adam's first moment after one step is 0.1 of the gradient
    for name, gradient in gradients.items():
        assert gradient is not None
        assert torch.allclose(steps.state()[f"{name}.exp_avg"], 0.1 * gradient, atol=1e-6), name


@pytest.mark.parametrize("candidates", [1, 5, 12])
def test_candidates_and_cold_items_are_ranked_by_cosine_and_the_rest_of_the_search_follows(candidates: int) -> None:
    model, seen = liger(candidates), histories().matrix(ITEMS)
    assert 11 in known(8)  # a cold item that is seen is left out
    top = exact_top_k(model, USERS, ITEMS, seen)
    for user in USERS.tolist():
        chances = model.path_log_probabilities(user, np.arange(ITEMS)).sum(1).numpy()
        free = [i for i in np.argsort(-chances, kind="stable").tolist() if i not in set(seen[[user]].indices)]
        near = cosines(model, user, known(user)).detach().numpy()
        union = sorted({*free[:candidates], *(set(COLD) & set(free))}, key=lambda item: -near[item])
        rest = [item for item in free if item not in union]
        assert top.items[user].tolist() == [*union, *rest, *[-1] * (ITEMS - len(free))]
        assert np.allclose(top.scores[user, : len(union)], near[union], atol=1e-5)
        assert np.allclose(top.scores[user, len(union) : len(free)], chances[rest] - 1, atol=1e-4)


def test_a_narrow_search_still_ranks_every_cold_item() -> None:
    top = exact_top_k(liger(candidates=3), USERS, 6, None)
    assert all(set(COLD) <= set(row) for row in top.items.tolist())
    assert (np.diff(top.scores, axis=1) <= 0).all()


def test_without_a_number_of_candidates_all_items_are_ranked_by_their_cosine() -> None:
    model, seen = liger(candidates=None), histories().matrix(ITEMS)
    top = exact_top_k(model, USERS, 10, seen)
    for user in USERS.tolist():
        near = cosines(model, user, known(user)).detach().numpy()
        near[seen[[user]].indices] = -np.inf
        assert top.items[user].tolist() == np.argsort(-near, kind="stable")[:10].tolist()


def test_a_saved_model_gives_the_same_lists(tmp_path: Path) -> None:
    model = liger()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, Tiger) and again.dense is not None and model.dense is not None
    assert again.dense.settings == model.dense.settings and again.dense.cold.nonzero()[:, 0].tolist() == COLD
    assert torch.equal(again.scores(USERS), model.scores(USERS))


RING, WALKERS = 24, 96
"""Items on a ring, whose content is their angle; some are never visited in training."""
MISSING = (5, 13, 21)


def ring_walks(steps: int) -> Sequences:
    """User u starts at the u-th visited item and goes on round the ring, past what is missing."""
    visited = np.delete(np.arange(RING), MISSING)
    items = visited[(np.arange(WALKERS)[:, None] + np.arange(steps)) % len(visited)]
    return Sequences.of_events(np.repeat(np.arange(WALKERS), steps), items.reshape(-1), WALKERS)


def ring_model(*, dense: bool, dropout: float = 0.0) -> Tiger:
    angle = torch.arange(RING) * (2 * torch.pi / RING)
    waves = [f(angle * n) for n in (1, 2, 3) for f in (torch.sin, torch.cos)]
    chosen = head(DenseSettings(1.0, 0.1, 3), torch.stack(waves, 1), dim=32) if dense else None
    shape = T5Shape(dim=32, layers=1, heads=2, head_dim=16, inner=64)
    return Tiger(
        codes(RING),
        ring_walks(1),
        shape,
        Reading(4),
        beam=6,
        dropout=dropout,
        dense=chosen,
        generator=generator(0, "i"),
    )


def test_an_item_that_nobody_had_is_found_by_the_dense_head_alone() -> None:
    """The users who stand before a missing item: their next one in content is that one."""
    settings = TigerSettings(lr=0.01, warmup_steps=20, batch_size=96, epochs=25)
    walks = ring_walks(6)
    before = np.flatnonzero(np.isin((walks.items[walks.offsets[1:] - 1] + 1) % RING, MISSING))
    goals = (walks.items[walks.offsets[1:] - 1] + 1) % RING
    assert len(before) >= 9
    found = {}
    for dense in (False, True):
        model = ring_model(dense=dense)
        fit_tiger(model, SequenceData(walks, None, walks), settings, seed=0)
        top = exact_top_k(model, before, 3, walks.matrix(RING)).items
        found[dense] = float((top == goals[before][:, None]).any(1).mean())
        usual = np.setdiff1d(np.arange(WALKERS), before)
        assert (exact_top_k(model, usual, 3, walks.matrix(RING)).items == goals[usual][:, None]).any(1).mean() > 0.9
    assert found[False] == 0.0 and found[True] > 0.9


class KilledError(Exception):
    """Stands for a signal that ends the process after an epoch's checkpoint."""


@pytest.mark.parametrize("refit", [True, False])
def test_a_killed_training_goes_on_to_the_same_bits_and_knows_what_is_cold(tmp_path: Path, *, refit: bool) -> None:
    """One of the missing items is in validation: it is cold unless the model is refitted."""
    valid = csr_array((np.ones(1, np.float32), ([0], [MISSING[0]])), shape=(WALKERS, RING))
    train = ring_walks(4)
    items = np.insert(train.items, 4, MISSING[0]).astype(np.int64)
    after = Sequences.of_events(np.repeat(np.arange(WALKERS), [5, *[4] * (WALKERS - 1)]), items, WALKERS)
    data = SequenceData(train, valid, after)
    settings = TigerSettings(
        warmup_steps=5, batch_size=96, epochs=3, selection=Selection("recall@3", 1, 3, refit=refit),
        checkpoint_minutes=0.0,
    )  # fmt: skip
    whole = ring_model(dense=True, dropout=0.1)
    fit_tiger(whole, data, settings, seed=0)

    def kill(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        fit_tiger(ring_model(dense=True, dropout=0.1), data, settings, seed=0, checkpoint_dir=tmp_path, on_epoch=kill)
    resumed = ring_model(dense=True, dropout=0.1)
    fit_tiger(resumed, data, settings, seed=0, checkpoint_dir=tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert resumed.dense is not None
    assert resumed.dense.cold.nonzero()[:, 0].tolist() == list(MISSING[1:] if refit else MISSING)


def test_items_without_content_are_alike_and_harm_nobody() -> None:
    content = torch.from_numpy(np.random.default_rng(0).standard_normal((ITEMS, 5), dtype=np.float32))
    content[[3, 8]] = 0
    model = tiger(dense=head(DenseSettings(candidates=None), content))
    scores = model.scores(USERS)
    assert torch.equal(scores[:, 3], scores[:, 8]) and not torch.equal(scores[:, 3], scores[:, 4])
    ((_, _, loss),) = NextCodes(model, histories(), TigerSettings(batch_size=10_000), seed=0).steps("select", 0, 0)
    assert np.isfinite(loss) and all(parameter.isfinite().all() for parameter in model.parameters())


def test_products_in_bfloat16_leave_the_cosines_in_float32() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        settings = TigerSettings(batch_size=10_000, precision=precision)  # type: ignore[arg-type]
        ((_, _, loss),) = NextCodes(liger(), histories(), settings, seed=0).steps("select", 0, 0)
        losses.append(loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_scores_and_learns() -> None:
    model, expected = liger(), liger().scores(USERS)
    model.to("cuda")
    assert torch.allclose(model.scores(USERS), expected, atol=1e-3)
    settings = TigerSettings(lr=0.01, warmup_steps=20, batch_size=96, epochs=25)
    walks = ring_walks(6)
    result = fit_tiger(ring_model(dense=True).to("cuda"), SequenceData(walks, None, walks), settings, seed=0)
    assert result.history[-1].loss < result.history[0].loss / 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": 0.0}, "DenseSettings.weight must be a number above 0, got 0.0"),
        ({"temperature": -0.1}, "DenseSettings.temperature must be a number above 0, got -0.1"),
        ({"candidates": 0}, "DenseSettings.candidates must be >= 1, or None for all items, got 0"),
    ],
)
def test_settings_that_train_or_rank_nothing_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DenseSettings(**changed)  # type: ignore[arg-type]


def test_content_that_does_not_fit_is_refused() -> None:
    network = Mlp((5, 16), np.random.default_rng(0))
    with pytest.raises(ValueError, match=re.escape("content must be float32 [N, 5], the width of its network, got")):
        DenseHead(torch.zeros(ITEMS, 4), network, DenseSettings(), max_items=4)
    with pytest.raises(ValueError, match="content must have the 30 items of the codes, got 7"):
        tiger(dense=DenseHead(torch.zeros(7, 5), network, DenseSettings(), max_items=4))
