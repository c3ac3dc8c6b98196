"""What graph models share: graph, cache, training, unusual data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from embeddings.tables import OptimizerSpec
from recsys.checkpoint import load_model, save_model
from recsys.losses import Loss
from recsys.models.graph_model import GraphModel
from recsys.models.lightgcn import LightGcn
from recsys.models.ngcf import Ngcf
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings, Selection
from recsys.trainer import fit
from tests.recsys.graph_fixture import ITEMS, USERS, kgat, tables, toy, two_row_map

Make = Callable[[csr_array], GraphModel]


def lightgcn(train: csr_array) -> GraphModel:
    return LightGcn(*tables(train, OptimizerSpec("adam", lr=0.05)), layers=2, l2=0.01)


def ngcf(train: csr_array) -> GraphModel:
    made = tables(train, OptimizerSpec("adam", lr=0.05), two_row_map)
    return Ngcf(*made, layers=2, dropout=0.2, generator=np.random.default_rng(0))


MODELS = pytest.mark.parametrize("make", [lightgcn, ngcf, kgat])
SETTINGS = FitSettings(
    Loss("bpr"), NegativeSampling(count=1, shared=False), batch_size=4, epochs=3, selection=Selection(every_epochs=1)
)
DEGENERATE = {
    "one user, one item": csr_array(np.ones((1, 1), np.float32)),
    "one user": csr_array(np.ones((1, 5), np.float32)),
    "one item": csr_array(np.ones((5, 1), np.float32)),
    "isolated nodes": csr_array((np.ones(1, np.float32), ([3], [2])), shape=(50, 40)),
}


def valid_of(train: csr_array) -> csr_array:
    """Four interactions that are not in train."""
    free = np.argwhere(train.toarray() == 0)[::7][:4]
    return csr_array((np.ones(len(free), np.float32), (free[:, 0], free[:, 1])), shape=train.shape)


@MODELS
@pytest.mark.parametrize("name", DEGENERATE)
def test_unusual_data_trains_to_finite_scores(make: Make, name: str) -> None:
    train = DEGENERATE[name]
    model = make(train)
    result = fit(model, train, None, SETTINGS, seed=0)
    assert np.isfinite([record.loss for record in result.history]).all()
    scores = model.scores(np.arange(train.shape[0]))
    assert scores.shape == train.shape and torch.isfinite(scores).all()


@MODELS
def test_an_empty_validation_is_refused_and_the_graph_is_of_train_without_one(make: Make) -> None:
    model = make(toy())
    with pytest.raises(ValueError, match="valid must have at least one interaction, got an empty matrix"):
        fit(model, toy(), csr_array(toy().shape, dtype=np.float32), SETTINGS, seed=0)
    fit(model, toy(), None, SETTINGS, seed=0)
    assert model.graph.num_edges == toy().nnz


@MODELS
def test_the_final_graph_is_that_of_train_and_validation_also_after_a_resume(make: Make, tmp_path: Path) -> None:
    """A finished training that is asked for again does no step, and must propagate over the same graph."""
    train, valid = toy(), valid_of(toy())
    first = make(train)
    fit(first, train, valid, SETTINGS, seed=0, checkpoint_dir=tmp_path)
    assert first.graph.num_edges == train.nnz + valid.nnz
    again = make(train)
    fit(again, train, valid, SETTINGS, seed=0, checkpoint_dir=tmp_path)
    assert again.graph.num_edges == train.nnz + valid.nnz
    assert torch.equal(again.scores(np.arange(USERS)), first.scores(np.arange(USERS)))


@MODELS
def test_a_training_cut_in_the_middle_ends_with_the_same_bits(make: Make, tmp_path: Path) -> None:
    class CutError(Exception):
        pass

    def cut(record: object) -> None:
        raise CutError

    train, valid = toy(), valid_of(toy())
    settings = FitSettings(SETTINGS.loss, SETTINGS.negatives, 4, 3, SETTINGS.selection, checkpoint_minutes=0.0)
    whole, resumed = make(train), make(train)
    fit(whole, train, valid, settings, seed=0)
    with pytest.raises(CutError):
        fit(make(train), train, valid, settings, seed=0, checkpoint_dir=tmp_path, on_epoch=cut)
    fit(resumed, train, valid, settings, seed=0, checkpoint_dir=tmp_path)
    assert all(torch.equal(part, resumed.state_dict()[name]) for name, part in whole.state_dict().items())
    assert torch.equal(whole.scores(np.arange(USERS)), resumed.scores(np.arange(USERS)))


@MODELS
def test_cached_vectors_follow_the_weights(make: Make) -> None:
    model = make(toy())
    model.use_graph(toy())
    before, everyone = model.scores(np.arange(USERS)), np.arange(USERS)
    assert model.scores(everyone).equal(before)
    state = {name: part.clone() for name, part in model.state_dict().items()}
    found = model.look_up(everyone, np.arange(ITEMS), 0, "select", 0, 0)
    (found.users.sum() + found.items.square().sum()).backward()  # type: ignore[no-untyped-call]
    model.step()
    after = model.scores(everyone)
    assert not after.equal(before)
    model.load_state_dict(state)
    assert model.scores(everyone).equal(before)
    model.use_graph(valid_of(toy()))
    assert not model.scores(everyone).equal(before)


@MODELS
def test_ids_beyond_the_tables_get_the_unseen_rows_and_are_saved_so(make: Make, tmp_path: Path) -> None:
    model = make(toy())
    model.use_graph(toy())
    model.users.weight()[model.users.unseen_row] = 7.0
    model.forget()
    far = model.user_vectors(np.array([-1, USERS, 10**9]))
    assert far[0].equal(far[1]) and far[0].equal(far[2])
    assert model.item_vectors(range(ITEMS + 3)).shape[0] == ITEMS + 3
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, GraphModel)
    assert again.user_vectors(np.array([-1]))[0].equal(far[0])


def test_an_item_is_served_with_a_power_of_its_length(tmp_path: Path) -> None:
    """Half way between cosine and inner product; users have length one, and training compares cosines."""
    whole, plain = (LightGcn(*tables(toy(), dim=4), similarity="cosine", norm_exponent=p) for p in (0.5, 0.0))
    plain.load_state_dict(whole.state_dict())
    for model in (whole, plain):
        model.use_graph(toy())
    items, lengths = whole.item_vectors(range(ITEMS)), whole._finals()[1][:ITEMS].norm(dim=1)
    assert items.norm(dim=1) == pytest.approx(lengths.sqrt(), rel=1e-5)
    assert (items / lengths.sqrt()[:, None]) == pytest.approx(plain.item_vectors(range(ITEMS)), rel=1e-5, abs=1e-7)
    assert whole.user_vectors(np.arange(USERS)).equal(plain.user_vectors(np.arange(USERS)))
    save_model(whole, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, LightGcn)
    assert again.item_vectors(range(ITEMS)).equal(items)
    with pytest.raises(ValueError, match=r"norm_exponent is for similarity cosine, got 0\.5 with dot"):
        LightGcn(*tables(toy()), norm_exponent=0.5)
    with pytest.raises(ValueError, match=r"norm_exponent must be >= 0, got -0\.5"):
        LightGcn(*tables(toy()), similarity="cosine", norm_exponent=-0.5)


@MODELS
def test_what_does_not_fit_is_refused(make: Make) -> None:
    model = make(toy())
    with pytest.raises(RuntimeError, match=r"needs a graph, got none; call use_graph\(train\) or fit it first"):
        model.scores(np.arange(2))
    with pytest.raises(ValueError, match=r"must have the model's shape \(9, 7\) \(users, items\), got \(3, 2\)"):
        model.use_graph(csr_array(np.ones((3, 2), np.float32)))
    with pytest.raises(ValueError, match="batch_size 1 with the bpr loss runs LearnBPR, which does not take the model"):
        fit(model, toy(), None, FitSettings(SETTINGS.loss, SETTINGS.negatives, batch_size=1), seed=0)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LightGcn needs layers >= 0 and l2 >= 0, got 3 and -1.0"):
        LightGcn(*tables(toy()), l2=-1.0)
