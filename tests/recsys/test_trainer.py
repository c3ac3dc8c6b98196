"""The training loop on small planted data: selection, refit, clipping, precision, errors, repeatable bits."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from recsys.evaluator import quick_metrics
from recsys.losses import Loss
from recsys.models.lightgcn import LightGcn
from recsys.models.mf import MatrixFactorization
from recsys.objective import Objective
from recsys.rng import generator
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order, user_order
from recsys.settings import EpochRecord, FitResult, FitSettings, Selection, TrainingDivergedError
from recsys.trainer import fit, negatives_file
from recsys.training_state import CheckpointError

USERS, ITEMS = 60, 48


def planted(seed: int = 0) -> tuple[csr_array, csr_array]:
    """Four groups of users, each with its own items; 20 % of the likes are validation."""
    rng = np.random.default_rng(seed)
    likes = (np.add.outer(np.arange(USERS), -np.arange(ITEMS)) % 4 == 0) & (rng.random((USERS, ITEMS)) < 0.7)
    valid = likes & (rng.random(likes.shape) < 0.2)
    return csr_array((likes & ~valid).astype(np.float32)), csr_array(valid.astype(np.float32))


def make_model(optimizer: str = "adagrad", lr: float = 0.1, similarity: str = "cosine") -> MatrixFactorization:
    spec = OptimizerSpec(optimizer, lr=lr)  # type: ignore[arg-type]
    tables = (
        build_table(
            IdMap(np.arange(n)[:, None], n + 1, n, "full"),
            8,
            backend="torch",
            optimizer=spec,
            init_std=0.1,
            generator=generator(0, side),
        )
        for side, n in (("users", USERS), ("items", ITEMS))
    )
    return MatrixFactorization(*tables, similarity=similarity)  # type: ignore[arg-type]


SETTINGS = FitSettings(
    Loss("sampled_softmax", temperature=0.3),
    NegativeSampling(count=16),
    batch_size=64,
    epochs=12,
    selection=Selection(every_epochs=2, patience=2, metric="recall@5"),
)
LEARN_BPR = dataclasses.replace(
    SETTINGS, lr_decay=0.5, loss=Loss("bpr"), negatives=NegativeSampling(count=1, shared=False), batch_size=1
)


def with_selection(settings: FitSettings = SETTINGS, **changes: object) -> FitSettings:
    return dataclasses.replace(settings, selection=dataclasses.replace(settings.selection, **changes))  # type: ignore[arg-type]


def weights(model: MatrixFactorization) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def timeless(result: FitResult) -> list[tuple[object, ...]]:
    return [(r.phase, r.epoch, r.step, r.loss, tuple(r.metrics.items())) for r in result.history]


def assert_same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


VARIANTS = {
    "adagrad": ("adagrad", "cosine", SETTINGS),
    "adam": ("adam", "cosine", SETTINGS),
    "rowwise_adagrad": ("rowwise_adagrad", "cosine", SETTINGS),
    "in-batch": ("adagrad", "cosine", dataclasses.replace(SETTINGS, loss=Loss("in_batch_softmax", 0.3, logq=True))),
    "directau": ("adagrad", "cosine", dataclasses.replace(SETTINGS, loss=Loss("directau"))),
    "own negatives": (
        "adagrad",
        "cosine",
        dataclasses.replace(SETTINGS, negatives=NegativeSampling(0.5, 8, shared=False, reject_positives=True)),
    ),
    "masked negatives": (
        "adagrad",
        "cosine",
        dataclasses.replace(SETTINGS, negatives=NegativeSampling(1.0, 16, shared=True, reject_positives=True)),
    ),
    "grouped negatives": (
        "adam",
        "cosine",
        dataclasses.replace(SETTINGS, negatives=NegativeSampling(1.0, 16, reject_positives=True, group=10)),
    ),
    "learn-bpr": ("adagrad", "dot", dataclasses.replace(LEARN_BPR, epochs=40)),
    "keep best": ("sgd", "cosine", with_selection(refit=False)),
    "falling rate": ("adam", "cosine", dataclasses.replace(SETTINGS, lr_decay=0.1)),
    "by user": ("adam", "cosine", dataclasses.replace(SETTINGS, positives="users")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_two_runs_have_the_same_bits_and_learn(name: str) -> None:
    optimizer, similarity, settings = VARIANTS[name]
    train, valid = planted()
    runs = []
    for _ in range(2):
        model = make_model(optimizer, 1.0 if optimizer == "sgd" else 0.1, similarity)
        runs.append((fit(model, train, valid, settings, seed=3), weights(model)))
    assert timeless(runs[0][0]) == timeless(runs[1][0])
    assert_same_bits(runs[0][1], runs[1][1])
    other = make_model(optimizer, similarity=similarity)
    assert timeless(fit(other, train, valid, settings, seed=4)) != timeless(runs[0][0])
    best = max(record.metrics["recall@5"] for record in runs[0][0].history if record.metrics)
    untrained = quick_metrics(make_model(optimizer, similarity=similarity), valid, train, ("recall@5",))
    assert best > untrained["recall@5"] + 0.3


@pytest.mark.parametrize("name", ["rowwise_adagrad", "learn-bpr", "by user"])
def test_a_resume_after_any_epoch_has_the_same_bits(name: str, tmp_path: Path) -> None:
    train, valid = planted()
    optimizer, similarity, settings = VARIANTS[name]
    settings = dataclasses.replace(settings, epochs=4, checkpoint_minutes=1e-9)
    whole = make_model(optimizer, similarity=similarity)
    want = fit(whole, train, valid, settings, seed=0)
    stops = 0

    class StopError(Exception):
        pass

    def stop(record: EpochRecord) -> None:
        raise StopError

    while True:
        model = make_model(optimizer, similarity=similarity)
        try:
            got = fit(model, train, valid, settings, seed=0, checkpoint_dir=tmp_path, on_epoch=stop)
            break
        except StopError:
            stops += 1
    assert stops == len(want.history)
    assert timeless(got) == timeless(want)
    assert_same_bits(weights(model), weights(whole))


def test_a_training_of_another_model_does_not_go_on(tmp_path: Path) -> None:
    """Though all tensors of a state dict are the same."""
    train, _ = planted()

    def lightgcn(layers: int = 2, users: IdMap | None = None, lr: float = 0.1, cosine: bool = False) -> LightGcn:
        maps = IdMap.identity(USERS) if users is None else users, IdMap.identity(ITEMS)
        spec = OptimizerSpec("adam", lr=lr)
        tables = [
            build_table(m, 8, optimizer=spec, init_std=0.1, generator=generator(0, i)) for i, m in enumerate(maps)
        ]
        return LightGcn(*tables, layers=layers, similarity="cosine" if cosine else "dot")

    fit(lightgcn(), train, None, SETTINGS, seed=0, checkpoint_dir=tmp_path)
    turned = IdMap(np.roll(np.arange(USERS), 1)[:, None], USERS + 1, USERS, "full")
    for other in (lightgcn(1), lightgcn(users=turned), lightgcn(lr=0.2), lightgcn(cosine=True)):
        with pytest.raises(CheckpointError, match="belongs to another configuration, data set or initial model"):
            fit(other, train, None, SETTINGS, seed=0, checkpoint_dir=tmp_path)
    fit(lightgcn(), train, None, SETTINGS, seed=0, checkpoint_dir=tmp_path)


def test_refit_trains_the_chosen_number_of_epochs_on_both_splits() -> None:
    train, valid = planted()
    model = make_model()
    records: list[EpochRecord] = []
    result = fit(model, train, valid, SETTINGS, seed=0, on_epoch=records.append)
    assert records == result.history
    refit = [r for r in result.history if r.phase == "refit"]
    assert [r.epoch for r in refit] == list(range(1, result.best_epoch + 1))
    scored = {r.epoch: r.metrics["recall@5"] for r in result.history if r.metrics}
    assert result.best_epoch == max(scored, key=lambda epoch: (scored[epoch], -epoch))
    assert refit[-1].step == result.best_epoch * -(-(train.nnz + valid.nnz) // SETTINGS.batch_size)
    assert all(r.rss_mib > 10 and r.seconds > 0 and r.triples_per_second > 0 for r in result.history)
    assert quick_metrics(model, valid, csr_array(valid.shape, dtype=np.float32), ("recall@20",))["recall@20"] > 0.9


def test_without_refit_the_best_weights_come_back() -> None:
    train, valid = planted()
    model = make_model("sgd", lr=40.0)  # so large that quality goes up and down
    settings = with_selection(dataclasses.replace(SETTINGS, epochs=30), refit=False, every_epochs=1, patience=4)
    result = fit(model, train, valid, settings, seed=0)
    values = [r.metrics["recall@5"] for r in result.history]
    assert quick_metrics(model, valid, train, ("recall@5",))["recall@5"] == max(values)
    assert result.best_epoch == 1 + values.index(max(values))
    assert result.epochs_run == len(values) == result.best_epoch + 4, "patience stops four evaluations after the best"


def test_without_validation_all_epochs_run() -> None:
    result = fit(make_model(), planted()[0], None, SETTINGS, seed=0)
    assert (result.best_epoch, result.epochs_run, len(result.history)) == (12, 12, 12)


def test_max_minutes_ends_the_selection() -> None:
    result = fit(make_model(), *planted(), with_selection(max_minutes=1e-9), seed=0)
    assert (result.epochs_run, result.best_epoch) == (2, 2)


def test_clipping_bounds_the_step() -> None:
    train = csr_array(np.eye(USERS, ITEMS, dtype=np.float32))  # no row is used twice, so the step is the gradient
    settings = dataclasses.replace(SETTINGS, loss=Loss("in_batch_softmax", 0.01), batch_size=99, epochs=1)
    steps = []
    for clip in (None, 0.25):
        model = make_model("sgd", lr=1.0)
        before = weights(model)
        fit(model, train, None, dataclasses.replace(settings, gradient_clip_norm=clip), seed=0)
        moved = [(weights(model)[name] - before[name]).square().sum() for name in before]
        steps.append(float(torch.stack(moved).sum().sqrt()))
    assert steps[0] > 1.0
    assert steps[1] == pytest.approx(0.25, rel=1e-3)


def test_bfloat16_learns_the_same() -> None:
    train, valid = planted()
    results = [
        fit(make_model(), train, valid, dataclasses.replace(SETTINGS, precision=p), seed=0)
        for p in ("float32", "bfloat16")
    ]  # type: ignore[arg-type]
    ends = [[r.metrics["recall@5"] for r in result.history if r.metrics][-1] for result in results]
    assert ends[1] == pytest.approx(ends[0], abs=0.1)
    assert results[0].history[0].loss != results[1].history[0].loss


def test_divergence_says_where_and_what_to_try() -> None:
    model = make_model("sgd", lr=1e30, similarity="dot")
    settings = dataclasses.replace(SETTINGS, loss=Loss("bpr"))
    with pytest.raises(
        TrainingDivergedError, match=r"loss is (nan|inf) in epoch 1, step \d+ \(select\); try a smaller"
    ):
        fit(model, *planted(), settings, seed=0)


def test_shapes_and_empty_train_are_refused() -> None:
    train, valid = planted()
    with pytest.raises(
        ValueError, match=r"valid must have the model's shape \(60, 48\) \(users, items\), got \(60, 47\)"
    ):
        fit(make_model(), train, valid[:, :47], SETTINGS, seed=0)
    with pytest.raises(ValueError, match="train must have at least one interaction, got an empty matrix"):
        fit(make_model(), csr_array((USERS, ITEMS), dtype=np.float32), None, SETTINGS, seed=0)
    with pytest.raises(
        ValueError, match=r"valid must have at least one interaction, got an .* pass None to train without"
    ):
        fit(make_model(), train, csr_array((USERS, ITEMS), dtype=np.float32), SETTINGS, seed=0)


def test_learn_bpr_lists_all_that_it_cannot_do() -> None:
    settings = dataclasses.replace(
        LEARN_BPR,
        loss=Loss("bpr", user_dropout=0.5),
        negatives=NegativeSampling(count=4, group=8),
        gradient_clip_norm=1.0,
        precision="bfloat16",
        positives="users",
    )
    with pytest.raises(ValueError, match="LearnBPR, which does not take") as error:
        fit(make_model("adam"), *planted(), settings, seed=0)
    listed = "similarity: cosine, gradient_clip_norm, user_dropout, precision: bfloat16, positives: users,"
    assert (
        listed + " negatives.count 4 (only 1), negatives.shared, negatives.group, optimizer adam or lazy_adam"
        in str(error.value)
    )
    assert "set a larger train.batch_size" in str(error.value)


def test_by_user_a_step_learns_from_the_draws_of_users() -> None:
    train, _ = planted()
    few = csr_array(np.vstack([train.toarray()[:1] > 0, np.eye(USERS - 1, ITEMS, dtype=bool)]).astype(np.float32))
    settings = dataclasses.replace(SETTINGS, positives="users", batch_size=1 << 20)
    model = make_model("sgd", 0.5, "dot")
    before = weights(model)["users.embedding"].clone()
    ((_, size, _),) = Objective(model, few, settings, seed=3).steps("select", 0, 0)
    assert size == few.nnz
    drawn = np.repeat(np.arange(USERS), np.diff(few.indptr))[user_order(few.indptr, seed=3, phase="select", epoch=0)]
    moved = (weights(model)["users.embedding"] != before).any(1)[:USERS]
    assert np.array_equal(np.flatnonzero(moved.numpy()), np.unique(drawn))


def test_groups_of_a_batch_each_have_their_negatives() -> None:
    """A step of plain autograd: the mean loss over the positives, each against what its group has drawn."""
    train, _ = planted()
    settings = dataclasses.replace(
        SETTINGS, negatives=NegativeSampling(count=5, group=7), batch_size=20, loss=Loss("sampled_softmax", 0.5)
    )
    model, lr = make_model("sgd", 0.7, "dot"), 0.7
    before = weights(model)
    objective = Objective(model, train, settings, seed=3)
    _, size, value = next(iter(objective.steps("select", 0, 0)))
    bounds = [size * part // 3 for part in range(4)]  # groups of at most 7
    assert max(np.diff(bounds)) <= 7
    tables = {name: before[name].double().requires_grad_() for name in ("users.embedding", "items.embedding")}
    chosen = epoch_order(int(train.nnz), seed=3, phase="select", epoch=0)[:size]
    users = np.repeat(np.arange(USERS), np.diff(train.indptr))[chosen]
    losses, sampler = [], NegativeSampler(train, settings.negatives, seed=3)
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        drawn = sampler.draw(users[low:high], "select", 0, 0, *([number] if number else [])).items
        for place in range(low, high):
            items = tables["items.embedding"][np.append(train.indices[chosen[place]], drawn)]
            scores = items @ tables["users.embedding"][users[place]] / 0.5
            losses.append(scores.logsumexp(0) - scores[0])
    expected = torch.stack(losses).mean()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    for name, table in tables.items():
        assert table.grad is not None
        assert torch.allclose(model.state_dict()[name].double(), before[name] - lr * table.grad, atol=1e-5), name


@pytest.mark.parametrize("base", [LEARN_BPR, SETTINGS], ids=["LearnBPR", "batches"])
def test_lr_decay_reaches_its_share_in_the_last_epoch(base: FitSettings) -> None:
    train, _ = planted()
    ends = []
    for decay in (1.0, 1e-9):
        model, states = make_model("sgd", 0.05, "dot"), []
        settings = dataclasses.replace(base, epochs=3, lr_decay=decay)
        fit(model, train, None, settings, seed=0, on_epoch=lambda _, m=model, s=states: s.append(weights(m)))  # type: ignore[misc]
        moves = [(states[k]["users.embedding"] - states[k - 1]["users.embedding"]).norm() for k in (1, 2)]
        ends.append(float(moves[1] / moves[0]))
    assert ends[0] > 0.5
    assert ends[1] < 1e-6


def test_a_refit_starts_with_the_whole_learning_rate() -> None:
    settings = dataclasses.replace(SETTINGS, epochs=3, lr_decay=0.1, selection=Selection(every_epochs=1, patience=3))
    model, rates = make_model("sgd", 0.05), []
    fit(model, *planted(), settings, seed=0, on_epoch=lambda _: rates.append(model.users.optimizer.lr))
    falling = [0.05 * settings.lr_share(epoch) for epoch in range(3)]
    assert rates[:3] == falling == pytest.approx([0.05, 0.0275, 0.005])
    assert rates[3:] == falling[: len(rates) - 3] and len(rates) > 3


@pytest.mark.parametrize(
    "settings",
    [
        dataclasses.replace(SETTINGS, epochs=2, negatives=NegativeSampling(alpha=1.0, count=4, reject_positives=True)),
        dataclasses.replace(SETTINGS, epochs=2, loss=Loss("in_batch_softmax")),
        dataclasses.replace(LEARN_BPR, epochs=2),
    ],
    ids=["sampler", "in-batch", "LearnBPR"],
)
def test_what_the_negatives_knew_is_on_disk_for_each_phase(settings: FitSettings, tmp_path: Path) -> None:
    train, valid = planted()
    similarity = "dot" if settings.batch_size == 1 else "cosine"
    fit(make_model(similarity=similarity), train, valid, settings, seed=0, checkpoint_dir=tmp_path)
    for phase, seen in (("select", train), ("refit", train + valid)):
        known = load_file(negatives_file(tmp_path, phase))  # type: ignore[arg-type]
        np.testing.assert_array_equal(known["counts"], np.asarray(seen.sum(axis=0)).astype(np.int64))
        if settings.negatives.reject_positives:
            np.testing.assert_array_equal(known["known"], np.stack(csr_array(seen).nonzero(), axis=1))
