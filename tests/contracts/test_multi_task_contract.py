"""What every gate keeps below every kind of head: losses of plain autograd, k experts, the same bits from files."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.rankers.extraction import Extracted, Extraction
from recsys.rankers.gates.build import GateSpec
from recsys.rankers.gates.comet import CometGate
from recsys.rankers.gates.dense_to_sparse import Annealing
from recsys.rankers.gates.dselect_k import DSelectKGate
from recsys.rankers.gates.hashed import HashGate
from recsys.rankers.gates.permuted import PermutationSearch
from recsys.rankers.gates.top_k import TopKGate
from recsys.rankers.multi_task import MultiTaskRanker, MultiTaskSpec
from recsys.rankers.multi_task_checkpoint import load_multi_task, save_multi_task
from recsys.rankers.multi_task_training import fit_multi_task, validation_metrics
from recsys.rankers.ranker import Tower
from recsys.settings import EpochRecord, Selection
from recsys.task_events import TaskEvents
from tests.recsys.multi_task_fixture import NAMES, SPEC, events, model, settings

ANNEALING = Annealing(1.0, 2.0)
GATES = {name: GateSpec(name, gamma=0.5, entropy_weight=0.01, annealing=ANNEALING) for name in NAMES}
GATES["permuted"] = GateSpec("dense_to_sparse", k=1, annealing=ANNEALING, search=PermutationSearch(epochs=2.0))
HEADS = {"mmoe": (4, 0, 1), "cgc": (3, 1, 1), "ple": (3, 1, 2)}
"""Shared experts, experts of each task, levels."""
SPECS = {
    f"{gate}-{head}": dataclasses.replace(SPEC, gate=GATES[gate], experts=shared, private=private, levels=levels)
    for gate in GATES
    for head, (shared, private, levels) in HEADS.items()
}
EXACT = [name for name, spec in SPECS.items() if spec.gate.name != "dense_to_sparse"]
"""Those without noise in training."""
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def step(values: Tensor, gamma: float) -> Tensor:
    inside = -2 * values**3 / gamma**3 + 3 * values / (2 * gamma) + 0.5
    return torch.where(values.abs() >= gamma / 2, (values > 0).double(), inside)


def entropy(probabilities: Tensor) -> Tensor:
    kept = probabilities.clamp_min(1e-30)
    return -(kept * kept.log()).flatten(1).sum(1).mean()


def weights_by_hand(gate: nn.Module, inputs: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [B, E] and the penalty, by the papers' equations over all experts."""
    match gate:
        case TopKGate():
            logits = inputs @ gate.logits.weight.T
            shares = logits.exp() * (logits >= logits.sort(descending=True).values[:, gate.k - 1 : gate.k])
            return shares / shares.sum(1, keepdim=True), torch.zeros(())
        case HashGate():
            return functional.one_hot(gate.experts[keys], gate.num_experts).double().mean(1), torch.zeros(())
        case CometGate():
            assert gate.nodes is not None
            left = step(gate.nodes(inputs), gate.gamma).view(len(inputs), gate.k, -1)
            reached = {0: torch.ones_like(left[:, :, 0])}
            for node in range(gate.num_experts - 1):
                reached[2 * node + 1] = reached[node] * left[:, :, node]
                reached[2 * node + 2] = reached.pop(node) * (1 - left[:, :, node])
            leaves = torch.stack([reached[node] for node in sorted(reached)], 2)
            terms = leaves * gate.leaves(inputs).view(leaves.shape).exp()
            return terms.sum(1) / terms.sum((1, 2))[:, None], gate.entropy_weight * entropy(leaves)
        case DSelectKGate():
            assert gate.codes is not None
            ones = step(gate.codes(inputs), gate.gamma).view(len(inputs), gate.k, -1)
            bits = [[number >> bit & 1 for bit in range(ones.shape[2])] for number in range(gate.num_experts)]
            parts = [[ones[:, :, b] if on else 1 - ones[:, :, b] for b, on in enumerate(code)] for code in bits]
            chosen = torch.stack([torch.stack(part).prod(0) for part in parts], 2)
            penalty = gate.entropy_weight * entropy(chosen)
            if gate.num_experts < 2 ** ones.shape[2]:
                penalty = penalty + (1 / chosen.sum(2)).sum(1).mean()
            return (gate.mix(inputs).softmax(1)[:, :, None] * chosen).sum(1), penalty
    raise AssertionError(gate)


def level_by_hand(level: Extraction, inputs: list[Tensor], keys: Tensor) -> tuple[list[Tensor], Tensor]:
    """Every expert for every event, then the sums; inputs of the tasks and the shared one."""
    tasks, private, mixture = level.tasks, level.private, level.mixture
    outputs = []
    for number in range(mixture.num_experts):
        hidden = inputs[-1 if number < level.shared else (number - level.shared) // private]
        for weight, bias in zip(mixture.weights, mixture.biases, strict=True):
            hidden = (hidden @ weight[number] + bias[number]).relu()
        outputs.append(hidden)
    common, mixed, penalties = outputs[: level.shared], [], []
    for place, gate in enumerate(level.gates):
        first = level.shared + place * private
        seen = outputs if place == tasks else common + outputs[first : first + private]
        weights, penalty = weights_by_hand(gate, inputs[place], keys)
        mixed.append((weights[:, :, None] * torch.stack(seen, 1)).sum(1))
        penalties.append(penalty)
    return mixed, torch.stack(penalties).sum()


def loss_by_hand(twin: MultiTaskRanker, vectors: Tensor, data: TaskEvents) -> Tensor:
    """What :func:`fit_multi_task` minimises, from the fields' vectors [B, D]."""
    mixed, penalties = [vectors] * 3, []
    for level in twin.levels:
        assert isinstance(level, Extraction)
        mixed, penalty = level_by_hand(level, mixed, torch.from_numpy(data.ids[:, 0]).long())
        penalties.append(penalty)
    values = []
    for hidden, head in zip(mixed, twin.heads, strict=False):
        first, _, last = head.children()
        values.append(
            functional.linear(functional.linear(hidden, *first.parameters()).relu(), *last.parameters())[:, 0]
        )
    labels, rated = torch.from_numpy(data.labels).double(), torch.from_numpy(data.known("rating"))
    watch = functional.binary_cross_entropy_with_logits(values[0], labels[:, 0])
    rating = (values[1] - (labels[:, 1] - 3) / 2)[rated].square().mean()
    return 0.3 * watch + 0.7 * rating + torch.stack(penalties).sum()


@pytest.mark.parametrize("name", EXACT)
def test_the_losses_are_those_of_autograd_and_adam(name: str) -> None:
    """The golden losses: in float64, densely, tables and layers under one torch.optim.Adam."""
    ranker, data = model(SPECS[name]), events(100, 0)
    twin = copy.deepcopy(ranker).double()
    rows = nn.ParameterList(nn.Parameter(ranker.tables.weight(name).double().clone()) for name in data.fields)
    layers = [parameter for name, parameter in twin.named_parameters() if not name.startswith("tables.")]
    adam, losses = torch.optim.Adam([*rows, *layers], lr=0.02), []
    ids = torch.from_numpy(data.ids).long()
    for _ in range(10):
        vectors = torch.cat([row[ids[:, place]] for place, row in enumerate(rows)], 1)
        loss = loss_by_hand(twin, vectors, data)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    found = fit_multi_task(ranker, data, None, settings(batch_size=100, epochs=10, lr=0.02, table_lr=0.02), seed=0)
    assert [record.loss for record in found.history] == pytest.approx(losses, rel=2e-4)
    assert losses[-1] < losses[0] - 0.02


@every_spec
def test_the_loss_is_finite_and_falls(spec: MultiTaskSpec) -> None:
    chosen = settings(batch_size=32, lr=0.04, table_lr=0.04, epochs=6)
    losses = [record.loss for record in fit_multi_task(model(spec), events(128, 0), None, chosen, seed=0).history]
    assert np.isfinite(losses).all()
    assert min(losses[-2:]) < losses[0] - 0.1


@pytest.mark.parametrize("name", [*(f"{name}-mmoe" for name in NAMES), "softmax-ple"])
def test_both_tasks_are_learned(name: str) -> None:
    ranker = model(SPECS[name])
    chosen = settings(epochs=12, lr=0.02, table_lr=0.02)
    fit_multi_task(ranker, events(1000, 0), events(300, 1), chosen, seed=0)
    found = validation_metrics(ranker, events(400, 2))
    assert found["watch/auc"] > (0.8 if "dense_to_sparse" in name else 0.95), "EvoMoE's experts start late"
    assert found["rating/rmse"] < 0.6, "a constant has 2"
    if name.startswith(("top_k", "hash", "dense_to_sparse")):
        assert found["watch/experts"] == pytest.approx(2.0)


@every_spec
def test_a_prediction_depends_on_its_event_alone(spec: MultiTaskSpec) -> None:
    ranker, data = model(spec), events(37, 0)
    ranker.advance(2.5)
    whole, _ = ranker.predict(data)
    pieces = [
        ranker.predict(TaskEvents(data.ids[part], data.labels[part], data.fields, data.tasks))[0]
        for part in (slice(0, 1), slice(1, 20), slice(20, 37))
    ]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ranker.predict(data)[0], whole)


@every_spec
def test_at_most_k_experts_are_chosen_and_no_other_learns(spec: MultiTaskSpec) -> None:
    """Where gates have decided, as in the end; an event alone leaves experts out on every level."""
    ranker = model(spec).eval()
    ranker.advance(100.0)
    found: list[Extracted] = []
    for level in ranker.levels:
        assert isinstance(level, Extraction)
        level.register_forward_hook(lambda _, __, extracted: found.append(extracted))
        for parameter in level.gates.parameters():
            parameter.data.mul_(1e4)
    seen = spec.experts + spec.private
    k = seen if spec.gate.name == "softmax" else spec.gate.k
    ranker(torch.from_numpy(events(40, 0).ids).long())
    chosen = [(weights != 0).sum(1) for extracted in found for weights in extracted.weights[:2]]
    assert max(int(count.max()) for count in chosen) <= k
    assert min(int(count.min()) for count in chosen) >= 1 or spec.gate.name == "dselect_k", "a code may be no expert's"
    found.clear()
    outputs = ranker(torch.from_numpy(events(1, 0).ids).long())
    (outputs.values.sum() + outputs.penalty).backward()
    for level, extracted in zip(ranker.levels, found, strict=True):
        used = torch.stack(extracted.weights).ne(0).any(0).any(0)
        assert spec.gate.name == "softmax" or not used.all()
        assert isinstance(level, Extraction)
        for parameter in level.mixture.parameters():
            assert parameter.grad is not None
            assert not parameter.grad[~used].any()
            assert parameter.grad[used].any()


@every_spec
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, spec: MultiTaskSpec) -> None:
    """With everything that draws or has a clock: dropout, Gumbel noise, diversified copies, a permutation search."""
    spec = dataclasses.replace(spec, expert=Tower((8,), 0.3), head=Tower((8,), 0.2))
    data = events(120, 0), events(80, 1)
    selection = Selection("watch/auc", 1, 4, refit=spec.levels == 1)
    chosen = settings(epochs=4, plateau_factor=0.5, selection=selection)
    whole, resumed = model(spec), model(spec)
    expected = fit_multi_task(whole, *data, chosen, seed=4)

    class Killed(Exception):  # noqa: N818 - a kill, not an error
        pass

    def kill(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        fit_multi_task(model(spec), *data, chosen, seed=4, checkpoint_dir=tmp_path, on_epoch=kill)
    result = fit_multi_task(resumed, *data, chosen, seed=4, checkpoint_dir=tmp_path)
    assert [r.metrics for r in result.history] == [r.metrics for r in expected.history]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@every_spec
def test_a_saved_ranker_predicts_the_same_bits(tmp_path: Path, spec: MultiTaskSpec) -> None:
    ranker, data = model(spec, seed=3), events(50, 0)
    ranker.advance(2.5)
    save_multi_task(ranker, tmp_path / "saved")
    loaded = load_multi_task(tmp_path / "saved")
    assert loaded.spec == spec
    for ours, theirs in zip(loaded.predict(data), ranker.predict(data), strict=True):
        np.testing.assert_array_equal(ours, theirs)
