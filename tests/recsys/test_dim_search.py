"""The search for mixed dimensions: turns of rows and selection, resume, and what it leaves behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.mixed_dims import SoftSelection, frequency_blocks
from embeddings.tables import OptimizerSpec
from embeddings.tables.sparse_table import SparseTable
from recsys import mixed_dims
from recsys.evaluator import quick_metrics
from recsys.losses import Loss
from recsys.mixed_dims import DimSearch, hold_out, search_dims
from recsys.models.mf import MatrixFactorization
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings
from recsys.trainer import fit
from tests.recsys.test_trainer import ITEMS, USERS, make_model, planted

SETTINGS = FitSettings(Loss("sampled_softmax", temperature=0.3), NegativeSampling(count=16), batch_size=64, epochs=10)
SEARCH = DimSearch(0.4, epochs=6, warmup_epochs=2, held_out=0.2)


def searched() -> MatrixFactorization:
    tables = (
        SoftSelection(
            IdMap(np.arange(n)[:, None], n + 1, n, "full"), 16, OptimizerSpec("adagrad", lr=0.1),
            frequency_blocks(np.arange(n + 1), (0.5, 0.5)), init_std=0.1, generator=generator(0, side), alpha_lr=0.05,
        )
        for side, n in (("users", USERS), ("items", ITEMS))
    )  # fmt: skip
    return MatrixFactorization(*tables, similarity="cosine")


def test_a_search_and_a_retraining_rank_the_planted_items() -> None:
    train, valid = planted()
    model = searched()
    search_dims(model, train, SETTINGS, SEARCH, seed=0)
    for table, rows in ((model.users, USERS + 1), (model.items, ITEMS + 1)):
        assert isinstance(table, SparseTable)
        assert table.nnz == round(0.4 * rows * 16)
    masks = [model.users.stored(), model.items.stored()]  # type: ignore[operator]
    fit(model, train, None, SETTINGS, seed=0)
    assert quick_metrics(model, valid, train, ("recall@5",))["recall@5"] > 0.8
    assert torch.equal(masks[0], model.users.stored()) and torch.equal(masks[1], model.items.stored())  # type: ignore[operator]


def test_the_selection_learns_after_the_warm_up_only() -> None:
    train, _ = planted()
    model = searched()
    task = mixed_dims._Search(model, train, SETTINGS, SEARCH, 0)
    steps = task.start("select")
    users = model.users
    assert isinstance(users, SoftSelection)
    for epoch in range(3):
        for _ in steps.steps("select", epoch, 0):
            assert bool((users.alpha == 1).all()) == (epoch < SEARCH.warmup_epochs)
            assert users.learns == "rows"


def test_a_killed_search_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = planted()
    whole = searched()
    search_dims(whole, train, SETTINGS, SEARCH, seed=0)
    often = dataclasses.replace(SETTINGS, checkpoint_minutes=1e-9)
    real, left = SoftSelection.step, 97  # both tables step: in the middle of an epoch, after the warm-up

    def dying(table: SoftSelection) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        real(table)

    monkeypatch.setattr(SoftSelection, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        search_dims(searched(), train, often, SEARCH, seed=0, checkpoint_dir=tmp_path)
    model = searched()
    search_dims(model, train, often, SEARCH, seed=0, checkpoint_dir=tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_hold_out_divides_every_interaction_once() -> None:
    train, _ = planted()
    inner, outer = hold_out(train, 0.25, seed=3)
    assert outer.nnz == round(0.25 * train.nnz) and inner.nnz + outer.nnz == train.nnz
    assert (inner + outer != train).nnz == 0
    assert (hold_out(train, 0.25, seed=4)[1] != outer).nnz > 0


def test_what_a_search_cannot_do_is_refused() -> None:
    train, _ = planted()
    with pytest.raises(ValueError, match="needs SoftSelection tables, got TorchTable, TorchTable"):
        search_dims(make_model(), train, SETTINGS, SEARCH, seed=0)
    settings = dataclasses.replace(SETTINGS, loss=Loss("adap_tau"))
    with pytest.raises(ValueError, match="do not depend on earlier ones, got adap_tau with batch_size 64"):
        search_dims(searched(), train, settings, SEARCH, seed=0)
    with pytest.raises(ValueError, match=r"held_out 1e-09 of \d+ interactions leaves 0 in one part"):
        hold_out(train, 1e-9, seed=0)
