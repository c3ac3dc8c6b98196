"""Experts and the multi-task ranker: the dense sum without what is not routed, levels, losses, mistakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.rankers.experts import Experts
from recsys.rankers.gates.build import GateSpec
from recsys.rankers.gates.dense_to_sparse import Annealing
from recsys.rankers.multi_task import MultiTaskRanker
from recsys.rankers.multi_task_checkpoint import load_multi_task, save_multi_task
from recsys.rankers.multi_task_training import fit_multi_task, validation_metrics
from recsys.rankers.ranker import Tower
from recsys.settings import Selection, TrainingDivergedError
from recsys.task_events import TaskEvents, join_task_events
from recsys.training_state import CheckpointError
from tests.recsys.multi_task_fixture import SPEC, WATCH, events, gated, generator, model, settings


def experts(hidden: tuple[int, ...] = (7, 4), dropout: float = 0.0) -> Experts:
    made = Experts(6, 5, Tower(hidden, dropout), generator(0))
    made.draw(generator(1))
    with torch.no_grad():
        for bias in made.biases:
            bias.copy_(torch.randn(bias.shape, generator=generator(2)))
    return made


def dense(made: Experts, inputs: Tensor, weights: Tensor) -> Tensor:
    """Every expert for every example, then the sum: what the sparse one must equal."""
    outputs = inputs[:, None, :]
    for weight, bias in zip(made.weights, made.biases, strict=True):
        outputs = (torch.einsum("bei,eio->beo", outputs.expand(-1, len(weight), -1), weight) + bias).relu()
    return torch.einsum("be,beo->bo", weights, outputs)


def routes(share: float, tasks: int = 2) -> list[Tensor]:
    drawn = torch.rand(tasks, 30, 5, generator=generator(3))
    kept = torch.rand(tasks, 30, 5, generator=generator(4)) < share
    return list((drawn * kept).requires_grad_().unbind(0))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_routed_experts_equal_the_dense_sum_forward_and_backward(share: float) -> None:
    made, inputs = experts(), torch.randn(30, 6, generator=generator(5), requires_grad=True)
    leaves = [part.detach().clone().requires_grad_() for part in routes(share)]
    sides = []
    for mixed in (made(inputs, leaves), [dense(made, inputs, part) for part in leaves]):
        tensors = [inputs, *made.parameters()]
        loss = sum((place + 1) * part.square().sum() for place, part in enumerate(mixed))
        found = torch.autograd.grad(loss, [*tensors, *leaves], allow_unused=True)
        sides.append(([part.detach() for part in mixed], found))
    for ours, theirs in zip(sides[0][0], sides[1][0], strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(sides[0][1][:-2], sides[1][1][:-2], strict=True):
        torch.testing.assert_close(torch.zeros_like(theirs) if ours is None else ours, theirs)
    for ours, theirs, leaf in zip(sides[0][1][-2:], sides[1][1][-2:], leaves, strict=True):
        torch.testing.assert_close(ours[leaf != 0], theirs[leaf != 0])


def test_an_expert_that_nobody_chose_is_not_computed() -> None:
    made, inputs = experts(), torch.randn(30, 6, generator=generator(5))
    weights = [part.detach().clone() for part in routes(0.5)]
    for part in weights:
        part[:, 2] = 0.0
    expected = [part.detach() for part in made(inputs, weights)]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter[2] = torch.nan
    mixed = made(inputs, weights)
    for ours, theirs in zip(mixed, expected, strict=True):
        assert torch.equal(ours, theirs)
    sum(part.sum() for part in mixed).backward()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert (parameter.grad[2] == 0).all()


def test_a_poisoned_expert_hurts_only_the_examples_that_meet_it() -> None:
    made, inputs = experts(), torch.randn(30, 6, generator=generator(5))
    weights = routes(0.5, tasks=1)[0].detach()
    with torch.no_grad():
        made.weights[0][2] = torch.nan
    (mixed,) = made(inputs, [weights])
    assert torch.equal(mixed.isnan().all(dim=1), weights[:, 2] != 0)


def test_dropout_of_experts_keeps_the_mean() -> None:
    made = experts((50,), dropout=0.5).train()
    inputs, ones = torch.randn(400, 6, generator=generator(5)), torch.full((400, 5), 0.2)
    (noisy,) = made(inputs, [ones])
    (still,) = made.eval()(inputs, [ones])
    assert not torch.equal(noisy, still)
    assert float(noisy.mean().detach()) == pytest.approx(float(still.mean().detach()), rel=0.05)


def test_diversified_experts_are_masked_copies_of_the_first() -> None:
    made = experts((200,))
    made.diversify(0.25, generator(6))
    first, others = made.weights[0][0].detach(), made.weights[0][1:].detach()
    assert ((others == first) | (others == 0)).all()
    assert float((others == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(others[0], others[1])
    assert (made.biases[0] == made.biases[0][0]).all()


def test_experts_diverge_when_evomoe_s_gate_opens() -> None:
    ranker = model(dataclasses.replace(SPEC, gate=GateSpec("dense_to_sparse", annealing=Annealing(1.0, 2.0))))
    mixture = ranker.levels[0].mixture
    initial = mixture.weights[0].detach().clone()
    ranker.advance(0.99)
    assert torch.equal(mixture.weights[0], initial)
    ranker.advance(1.0)
    opened = mixture.weights[0].detach().clone()
    assert torch.equal(opened[0], initial[0])
    assert ((opened[1:] == initial[0]) | (opened[1:] == 0)).all()
    ranker.advance(1.5)
    assert torch.equal(mixture.weights[0], opened), "once only"


def test_a_private_expert_serves_its_own_task_only() -> None:
    ranker = model(gated("softmax", private=3)).eval()
    found = ranker(torch.randint(0, 8, (20, 2), generator=generator(0)))
    watch, rating = ((part > 0).all(dim=0).tolist() for part in found.weights)
    assert watch == [True] * 7 + [False] * 3
    assert rating == [True] * 4 + [False] * 3 + [True] * 3


def by_hand(ranker: MultiTaskRanker, ids: np.ndarray) -> np.ndarray:
    """PLE expert by expert in NumPy (Tang et al. 2020, section 4.2): float64 [T] of one event's ids [F]."""
    spec, tasks = ranker.spec, len(ranker.spec.tasks)
    weights = {name: value.double().numpy() for name, value in ranker.state_dict().items()}
    vectors = [ranker.tables.weight(name)[i].double().numpy() for name, i in zip(("user", "item"), ids, strict=True)]
    of_task, shared = [np.concatenate(vectors)] * tasks, np.concatenate(vectors)
    for level in range(spec.levels):
        name = f"levels.{level}"

        def expert(number: int, given: np.ndarray, name: str = name) -> np.ndarray:
            for layer in range(len(spec.expert.hidden)):
                matrix, bias = (weights[f"{name}.mixture.{part}.{layer}"][number] for part in ("weights", "biases"))
                given = np.maximum(given @ matrix + bias, 0)
            return given

        def gated(gate: int, selector: np.ndarray, outputs: list[np.ndarray], name: str = name) -> np.ndarray:
            share = np.exp(weights[f"{name}.gates.{gate}.logits.weight"] @ selector)
            return (share / share.sum()) @ np.stack(outputs)

        common = [expert(number, shared) for number in range(spec.experts)]
        own = [
            [expert(spec.experts + task * spec.private + i, of_task[task]) for i in range(spec.private)]
            for task in range(tasks)
        ]
        of_task = [gated(task, of_task[task], common + own[task]) for task in range(tasks)]
        if level < spec.levels - 1:
            shared = gated(tasks, shared, common + [output for part in own for output in part])
    heads = []
    for task, found in enumerate(of_task):
        hidden = np.maximum(weights[f"heads.{task}.0.weight"] @ found + weights[f"heads.{task}.0.bias"], 0)
        heads.append(weights[f"heads.{task}.2.weight"] @ hidden + weights[f"heads.{task}.2.bias"])
    return np.concatenate(heads)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("private", [0, 2])
def test_levels_are_progressive_layered_extraction(levels: int, private: int) -> None:
    ranker = model(gated("softmax", private=private, levels=levels, expert=Tower((8, 5)))).eval()
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            if not name.startswith("tables."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(len(name))) / 2)
    ids = torch.randint(0, 8, (12, 2), generator=generator(0))
    expected = np.stack([by_hand(ranker, event) for event in ids.numpy()])
    assert expected.std(axis=0).min() > 0.01
    np.testing.assert_allclose(ranker(ids).values.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_over_known_labels() -> None:
    ranker = model()
    values = torch.tensor([[2.0, 0.5], [-1.0, 7.0], [0.0, 1.0]])
    labels = torch.tensor([[1.0, 5.0], [0.0, torch.nan], [torch.nan, 3.0]])
    found = ranker.losses(values, labels)
    watch = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    assert found.tolist() == pytest.approx([watch, ((0.5 - 1.0) ** 2 + 1.0**2) / 2], rel=1e-6)
    assert float(ranker.total(found)) == pytest.approx(0.3 * watch + 0.7 * 0.625, rel=1e-6)
    assert ranker.losses(values, torch.full((3, 2), torch.nan)).tolist() == [0.0, 0.0]


def test_metrics_are_those_of_the_predictions() -> None:
    ranker, data = model(), events(300, 2)
    predictions, usage = ranker.predict(data)
    found = validation_metrics(ranker, data)
    rated = data.known("rating")
    wrong = predictions[rated, 1] - data.labels[rated, 1]
    assert found["rating/rmse"] == pytest.approx(np.sqrt(np.square(wrong.astype(np.float64)).mean()), rel=1e-5)
    log_loss = np.logaddexp(0, -predictions[:, 0] * np.where(data.labels[:, 0] == 1, 1, -1)).mean()
    assert found["watch/log_loss"] == pytest.approx(log_loss, rel=1e-5)
    expected = 0.3 * found["watch/log_loss"] + 0.7 * (found["rating/rmse"] / 2.0) ** 2
    assert found["neg_loss"] == pytest.approx(-expected, rel=1e-5)
    np.testing.assert_allclose(usage[0].sum(1), 1.0, rtol=1e-5)
    assert found["watch/experts"] == pytest.approx(usage[1, 0].sum())


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    save_multi_task(model(), tmp_path / "saved")
    facts = tmp_path / "saved" / "ranker.json"
    facts.write_text(facts.read_text().replace("recsys-multi-task", "recsys-ranker"))
    with pytest.raises(CheckpointError, match="must say format recsys-multi-task, version 2; train the ranker again"):
        load_multi_task(tmp_path / "saved")
    (tmp_path / "saved" / "ranker.safetensors").write_bytes(b"x")
    facts.write_text(facts.read_text().replace("recsys-ranker", "recsys-multi-task"))
    with pytest.raises(CheckpointError, match="is not a whole saved ranker"):
        load_multi_task(tmp_path / "saved")


def test_a_validation_loss_that_is_not_a_number_stops_the_training() -> None:
    train, valid = events(200, 0), events(60, 1)
    valid.labels[np.flatnonzero(valid.known("rating"))[0], 1] = np.inf
    with pytest.raises(TrainingDivergedError, match=r"validation neg_loss is -inf after epoch 1; try a smaller"):
        fit_multi_task(model(), train, valid, settings(), seed=0)


def test_mistakes_are_told() -> None:
    good = events(60, 0)
    none = TaskEvents(
        good.ids, np.where([[True, False]], good.labels, np.nan).astype(np.float32), good.fields, good.tasks
    )
    ones = TaskEvents(good.ids, np.ones_like(good.labels), good.fields, good.tasks)
    halves = TaskEvents(good.ids, np.full_like(good.labels, 0.5), good.fields, good.tasks)
    other = TaskEvents(good.ids, good.labels, good.fields, ("rating", "watch"))
    for train, valid, message in (
        (none, good, "task 'rating' has no known label in train; leave it out, or change the split"),
        (good, ones, "task 'watch' needs labels 0 and 1 in valid, got 60 of one class"),
        (halves, good, r"labels of the binary task 'watch' must be 0 or 1, but train has 0\.5"),
        (other, good, "the ranker has the tasks watch, rating, but train has rating, watch"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_multi_task(model(), train, valid, settings(), seed=0)
    with pytest.raises(ValueError, match=r"id_dropout is for rankers of one task, got {'item': 0\.1}"):
        fit_multi_task(model(), good, good, settings(id_dropout={"item": 0.1}), seed=0)
    with pytest.raises(ValueError, match="selection by 'rating/auc' is not possible; it is one of neg_loss, watch/auc"):
        fit_multi_task(model(), good, good, settings(selection=Selection("rating/auc")), seed=0)
    with pytest.raises(ValueError, match="key names the field 'town'; the fields are user, item"):
        model(dataclasses.replace(SPEC, key="town"))
    with pytest.raises(ValueError, match="at least one level, got 0"):
        model(dataclasses.replace(SPEC, levels=0))
    with pytest.raises(ValueError, match=r"tasks of different names, got \['watch', 'watch'\]"):
        model(dataclasses.replace(SPEC, tasks=(WATCH, WATCH)))
    with pytest.raises(ValueError, match="at least one layer and no batch norm, got Tower"):
        model(dataclasses.replace(SPEC, expert=Tower((8,), batch_norm=True)))
    with pytest.raises(ValueError, match=r"ids \[E, 2\] and labels \[E, 1\], got \[60, 2\] and \[60, 2\]"):
        TaskEvents(good.ids, good.labels, good.fields, ("watch",))
    assert len(join_task_events([good, ones])) == 120
