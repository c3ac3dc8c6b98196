"""KGAT against dense versions of the paper's equations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from recsys.kgat_steps import KgatSteps
from recsys.knowledge_graph import KnowledgeGraph
from recsys.losses import Loss
from recsys.models.kgat import Kgat
from recsys.models.transr import TransR
from recsys.rng import generator
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order
from recsys.settings import FitSettings
from recsys.trainer import fit
from recsys.training_state import CheckpointError
from tests.recsys.graph_fixture import ITEMS, USERS, kgat, knowledge, toy

SETTINGS = FitSettings(Loss("bpr"), NegativeSampling(count=1, shared=False), batch_size=3)
FIRST_ITEM, FIRST_ENTITY = USERS + 1, USERS + ITEMS + 2


def edges_by_hand() -> list[tuple[int, int, int]]:
    """(head, relation, tail) of the toy graph in both directions; relation 0 interacts, 3 to 5 are inverses."""
    pairs = [(int(user), 0, FIRST_ITEM + int(item)) for user, item in zip(*toy().nonzero(), strict=True)]

    def node(entity: int) -> int:
        return FIRST_ITEM + entity if entity < ITEMS else FIRST_ENTITY + entity - ITEMS

    pairs += [(node(h), 1 + r, node(t)) for h, r, t in knowledge().triples.tolist()]
    return sorted(pairs + [(t, r + 3, h) for h, r, t in pairs], key=lambda edge: (edge[0], edge[2], edge[1]))


def dense_attention(vectors: Tensor, translations: Tensor, projections: Tensor) -> Tensor:
    """Wang et al. 2019, eq. 4 and 5, edge by edge: [N, N]."""
    dense, sums = torch.zeros(len(vectors), len(vectors)), torch.zeros(len(vectors))
    for head, relation, tail in edges_by_hand():
        w = projections[relation]
        power = torch.exp((vectors[tail] @ w) @ torch.tanh(vectors[head] @ w + translations[relation]))
        dense[head, tail] += power
        sums[head] += power
    return dense / sums.clamp(min=1e-30)[:, None]


def dense_kgat(ego: Tensor, attention: Tensor, mixers: list[Tensor]) -> Tensor:
    """Eq. 3, 8 and 11: [N, D + sum of the widths]."""
    layer, final = ego, [ego]
    for first, second in mixers:
        around = attention @ layer
        added = functional.leaky_relu((layer + around) @ first, 0.2)
        layer = added + functional.leaky_relu((layer * around) @ second, 0.2)
        final.append(functional.normalize(layer))
    return torch.cat(final, 1)


def parameters_of(model: Kgat) -> list[Tensor]:
    """Layer 0 of all nodes, the relations, the matrices."""
    tables = [model.users.weight(), model.items.weight(), model.knowledge.entities.weight()[:-1]]
    return [torch.cat(tables), model.knowledge.translations, model.knowledge.projections, *model.mixers]


def dense_loss(step: int, half: int, model: Kgat, dense: list[Tensor], attention: Tensor) -> tuple[Tensor, np.ndarray]:
    """BPR of a step's interactions, or TransR's loss (eq. 1 and 2) of its triples, and the nodes that take part."""
    ego, translations, projections, *mixers = dense
    data = np.stack(toy().nonzero(), axis=1).astype(np.int64) if step < half else np.array(edges_by_hand())
    phase = "select" if step < half else "select triples"
    bounds = np.linspace(0, len(data), half + 1).astype(int)
    span = slice(bounds[step % half], bounds[step % half + 1])
    batch = data[epoch_order(len(data), seed=1, phase=phase, epoch=0)[span]]
    if step < half:
        drawn = NegativeSampler(toy(), SETTINGS.negatives, seed=1).draw(batch[:, 0], "select", 0, step).items[:, 0]
        nodes = np.stack([batch[:, 0], batch[:, 1] + FIRST_ITEM, drawn + FIRST_ITEM])
        user, positive, negative = dense_kgat(ego, attention, mixers)[nodes]
        return functional.softplus(((negative - positive) * user).sum(1)).mean(), nodes
    tails = generator(1, "tails", "select", 0, step).integers(len(ego), size=len(batch))
    losses = []
    for (head, relation, tail), other in zip(batch.tolist(), tails.tolist(), strict=True):
        w, r = projections[relation], translations[relation]
        true, false = ((ego[head] @ w + r - ego[node] @ w).square().sum() for node in (tail, other))
        losses.append(-torch.log(torch.sigmoid(false - true)))
    return torch.stack(losses).mean(), np.stack([batch[:, 0], batch[:, 2], tails])


def test_an_epoch_has_the_losses_and_weights_of_dense_autograd() -> None:
    """Steps on interactions, then on triples, by torch autograd and two Adams; the attention stands still."""
    model = kgat(toy(), l2=0.1, dropout=0.0, lr=0.01)
    model.use_graph(toy())
    dense: list[Tensor] = [torch.nn.Parameter(part.detach().clone()) for part in parameters_of(model)]
    ego, translations, projections, *mixers = dense
    optimizers = torch.optim.Adam([ego, *mixers], lr=0.01), torch.optim.Adam([translations, projections], lr=0.01)
    attention = dense_attention(ego, translations, projections).detach()
    steps = list(KgatSteps(model, toy(), SETTINGS, seed=1).steps("select", 0, 0))
    half = len(steps) // 2
    assert half >= 5
    for step, size, value in steps:
        expected, nodes = dense_loss(step, half, model, dense, attention)
        assert size == (nodes.shape[1] if step < half else 0)
        expected = expected + 0.05 * ego[nodes.reshape(-1)].square().sum() / nodes.shape[1]
        assert value == pytest.approx(float(expected.detach()), rel=1e-4)
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in zip(parameters_of(model), dense, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-3, atol=1e-4)
    refreshed = dense_attention(ego, translations, projections).detach()
    places = torch.from_numpy(model.collaborative.heads), torch.from_numpy(model.collaborative.tails)
    summed = torch.zeros_like(refreshed).index_put_(places, model.attention, accumulate=True)
    torch.testing.assert_close(summed, refreshed, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(refreshed, attention, atol=1e-3)
    final = dense_kgat(ego, refreshed, mixers).detach()
    torch.testing.assert_close(model.user_vectors(np.arange(USERS)), final[:USERS], rtol=1e-3, atol=1e-3)
    items = final[FIRST_ITEM : FIRST_ENTITY - 1]
    torch.testing.assert_close(model.item_vectors(range(ITEMS)), items, rtol=1e-3, atol=1e-3)


def test_every_step_can_be_the_last_before_a_resume() -> None:
    """The attention of the epoch's start is part of the state, also between two batches; the learning rate falls."""
    settings = dataclasses.replace(SETTINGS, epochs=2, lr_decay=0.1)
    whole = kgat(toy())
    whole.use_graph(toy())
    steps, saved = KgatSteps(whole, toy(), settings, seed=0), []
    for epoch in range(2):
        for step, _, _ in steps.steps("select", epoch, 0):
            weights = {name: part.clone() for name, part in whole.state_dict().items()}
            saved.append((epoch, step, weights, steps.state()))
    for epoch, step, weights, state in saved[::3]:
        model = kgat(toy())
        model.use_graph(toy())
        model.load_state_dict(weights)
        resumed = KgatSteps(model, toy(), settings, seed=0)
        resumed.load_state(state)
        for rest in range(epoch, 2):
            list(resumed.steps("select", rest, step + 1 if rest == epoch else 0))
        assert all(torch.equal(part, model.state_dict()[name]) for name, part in whole.state_dict().items())
        assert model.attention.equal(whole.attention)


def test_the_learning_rate_is_that_of_relations_too() -> None:
    model = kgat(toy())
    model.set_lr(0.001)
    rates = [*(table.optimizer.lr for table in model.tables), model.adam.lr, model.knowledge.adam.lr]
    assert rates == [0.001] * 5


def test_the_gradient_of_triples_is_clipped() -> None:
    """Adam moves a number by the whole learning rate, unless the gradient is far below its epsilon."""
    moved = []
    for norm in (None, 1e-12):
        model = kgat(toy(), l2=0.0)
        model.use_graph(toy())
        before = parameters_of(model)[0].detach().clone()
        steps = KgatSteps(model, toy(), dataclasses.replace(SETTINGS, gradient_clip_norm=norm), seed=0)
        list(steps.steps("select", 0, steps.steps_per_epoch // 2))
        moved.append(float((parameters_of(model)[0].detach() - before).abs().max()))
    assert moved[0] > 0.04 and moved[1] < 1e-4


def test_another_knowledge_graph_is_another_training(tmp_path: Path) -> None:
    fit(kgat(toy()), toy(), None, SETTINGS, seed=0, checkpoint_dir=tmp_path)
    other = kgat(toy())
    other.knowledge.graph = KnowledgeGraph(ITEMS, ITEMS + 4, 2, knowledge().triples[:-1])
    with pytest.raises(CheckpointError, match="belongs to another configuration, data set or initial model"):
        fit(other, toy(), None, SETTINGS, seed=0, checkpoint_dir=tmp_path)


def test_cold_items_are_ranked_by_what_they_share_with_liked_ones() -> None:
    """Users like one of two colours; half of the items have no interaction, only a colour."""
    users, items, cold = 20, 16, 8
    likes = np.add.outer(np.arange(users), np.arange(items)) % 2 == 0
    train = csr_array((likes & (np.arange(items) < cold)).astype(np.float32))
    colours = np.stack([np.arange(items), np.zeros(items, np.int64), items + np.arange(items) % 2], axis=1)
    shared = np.minimum(np.arange(items), cold)[:, None]  # as the compressors do: all cold items in the unseen row
    maps = IdMap.identity(users), IdMap(shared, cold + 1, cold, "full"), IdMap.identity(2)
    spec = OptimizerSpec("adam", lr=0.03)
    tables = [build_table(m, 8, optimizer=spec, init_std=0.1, generator=generator(0, i)) for i, m in enumerate(maps)]
    learned = TransR(tables[2], KnowledgeGraph(items, items + 2, 1, colours), generator=np.random.default_rng(0))
    model = Kgat(tables[0], tables[1], learned, widths=(8, 8), dropout=0.0, generator=np.random.default_rng(1))
    settings = FitSettings(Loss("bpr"), NegativeSampling(count=4), batch_size=32, epochs=40)
    fit(model, train, None, settings, seed=0)
    scores = model.scores(np.arange(users)).numpy()[:, cold:]
    assert (np.where(likes[:, cold:], scores, np.inf).min(1) > np.where(likes[:, cold:], -np.inf, scores).max(1)).all()


def test_what_does_not_fit_is_refused() -> None:
    model = kgat(toy())
    with pytest.raises(ValueError, match=r"needs 0 <= dropout < 1 and widths >= 1, got 1.0 and \[4, 3\]"):
        kgat(toy(), dropout=1.0)
    with pytest.raises(ValueError, match=r"Kgat needs knowledge of its 9 items in 5 dimensions, got 7 items in 5"):
        Kgat(model.items, model.users, model.knowledge, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="must have the 4 entities that are no items, got 7"):
        TransR(model.items, knowledge(), generator=np.random.default_rng(0))
