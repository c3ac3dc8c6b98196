from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.sparse import csr_array

from recsys import topk
from recsys.checkpoint import load_model, load_vectors, save_model
from recsys.evaluator import quick_metrics, quick_metrics_by_weight
from recsys.models.ensemble import StandardisedEnsemble, VectorEnsemble
from recsys.models.gf_cf import fit_gf_cf
from recsys.models.item_knn import ItemKnn
from recsys.models.sequence_model import SequenceModel
from recsys.training_state import CheckpointError
from tests.recsys.sequence_fixture import hstu, sasrec, toy


def members() -> tuple[SequenceModel, SequenceModel]:
    return toy(sasrec()), toy(hstu())


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_scores_are_the_weighted_sum_of_the_members(weight: float) -> None:
    first, second = members()
    users = np.array([4, 0, 7, 4])
    expected = (1 - weight) * first.scores(users) + weight * second.scores(users)
    assert torch.allclose(VectorEnsemble(first, second, weight).scores(users), expected, atol=1e-5)


def test_members_of_other_catalogues_and_foreign_weights_are_refused() -> None:
    first, second = members()
    with pytest.raises(ValueError, match=r"the same \(users, items\), got \(12, 25\) and \(12, 24\)"):
        VectorEnsemble(first, toy(sasrec(), items=24))
    with pytest.raises(ValueError, match=r"weight is that of the second member and must lie in \[0, 1\], got 1.5"):
        VectorEnsemble(first, second, 1.5)


def test_a_model_without_vectors_is_no_member(tmp_path: Path) -> None:
    save_model(ItemKnn.fit(csr_array(np.ones((3, 3), np.float32))), tmp_path / "model")
    with pytest.raises(CheckpointError, match="must be a model with vectors, got ItemKnn; name another one"):
        load_vectors(tmp_path / "model")


def unlike() -> tuple[ItemKnn, SequenceModel]:
    """Sparse similarities, and inner products; user 3 has no history."""
    history = (np.random.default_rng(0).random((12, 25)) < 0.3).astype(np.float32)
    history[3] = 0
    return ItemKnn.fit(csr_array(history)), toy(sasrec())


@dataclasses.dataclass
class Fixed:
    """A model of given scores."""

    table: torch.Tensor
    num_users = 2

    @property
    def num_items(self) -> int:
        return self.table.shape[1]

    def scores(self, users: npt.NDArray[np.int64]) -> torch.Tensor:
        return self.table[torch.from_numpy(users)]


def test_equal_scores_say_nothing_however_large_they_are() -> None:
    equal = Fixed(torch.full((2, 1001), 0.7))
    other = Fixed(torch.randn(2, 1001, generator=torch.Generator().manual_seed(0)))
    users = np.arange(2)
    alone = StandardisedEnsemble(Fixed(torch.zeros(2, 1001)), other, 0.5).scores(users)
    assert torch.equal(StandardisedEnsemble(equal, other, 0.5).scores(users), alone)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_standardised_scores_are_those_of_the_members_over_their_deviation(weight: float) -> None:
    users = np.array([5, 1, 8, 5])
    parts = [member.scores(users).numpy().astype(np.float64) for member in unlike()]
    first, second = (scores / scores.std(1, keepdims=True) for scores in parts)
    found = StandardisedEnsemble(*unlike(), weight).scores(users)
    assert np.allclose(found, (1 - weight) * first + weight * second, atol=1e-5)


def test_a_member_that_knows_nothing_of_a_user_leaves_the_other_one_to_rank() -> None:
    first, second = unlike()
    users = np.array([3])
    assert not first.scores(users).any()
    found, alone = StandardisedEnsemble(first, second, 0.3).scores(users), second.scores(users)
    assert torch.allclose(found, 0.3 * alone / alone.std(correction=0), atol=1e-6)


WEIGHTS = [0.0, 0.3, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("make", [lambda: StandardisedEnsemble(*unlike()), lambda: VectorEnsemble(*members())])
def test_all_weights_in_one_pass_are_each_weight_alone(
    make: Callable[[], StandardisedEnsemble | VectorEnsemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topk, "BLOCK_SCORES", 5 * 25)
    monkeypatch.setattr(topk, "USERS_AT_ONCE", 5)
    draw = np.random.default_rng(1).random((12, 25))
    draw[7] = 1  # has nothing to find
    seen, relevant = (csr_array(part.astype(np.float32)) for part in (draw < 0.3, (draw >= 0.3) & (draw < 0.5)))
    model, names = make(), ["recall@3", "ndcg@9"]
    alone = []
    for model.weight in WEIGHTS:
        alone.append(quick_metrics(model, relevant, seen, names))
    told: list[tuple[int, int]] = []
    together = quick_metrics_by_weight(model, WEIGHTS, relevant, seen, names, lambda *users: told.append(users))
    assert together == alone
    assert len({found["ndcg@9"] for found in together}) > 2
    assert told == [(0, 11), (5, 11), (10, 11), (11, 11)]


def test_the_members_score_a_block_once_for_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = unlike()
    asked: list[int] = []
    scores = first.scores
    monkeypatch.setattr(first, "scores", lambda users: asked.append(len(users)) or scores(users))
    nothing, relevant = csr_array((12, 25), dtype=np.float32), csr_array(np.eye(12, 25, dtype=np.float32))
    quick_metrics_by_weight(StandardisedEnsemble(first, second), WEIGHTS, relevant, nothing)
    assert asked == [12]


def test_a_standardised_sum_is_saved_with_members_of_any_kind(tmp_path: Path) -> None:
    model = StandardisedEnsemble(fit_gf_cf(csr_array(np.eye(12, 25, dtype=np.float32)), rank=2), toy(sasrec()), 0.8)
    save_model(model, tmp_path / "model")
    found, users = load_model(tmp_path / "model"), np.arange(12)
    assert isinstance(found, StandardisedEnsemble) and found.weight == 0.8
    assert torch.equal(found.scores(users), model.scores(users))
