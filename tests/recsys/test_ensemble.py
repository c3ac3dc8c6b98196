from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recsys.checkpoint import load_vectors, save_model
from recsys.models.ensemble import Ensemble
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
    assert torch.allclose(Ensemble(first, second, weight).scores(users), expected, atol=1e-5)


def test_members_of_other_catalogues_and_foreign_weights_are_refused() -> None:
    first, second = members()
    with pytest.raises(ValueError, match=r"the same \(users, items\), got \(12, 25\) and \(12, 24\)"):
        Ensemble(first, toy(sasrec(), items=24))
    with pytest.raises(ValueError, match=r"weight is that of the second member and must lie in \[0, 1\], got 1.5"):
        Ensemble(first, second, 1.5)


def test_a_model_without_vectors_is_no_member(tmp_path: Path) -> None:
    save_model(ItemKnn.fit(csr_array(np.ones((3, 3), np.float32))), tmp_path / "model")
    with pytest.raises(CheckpointError, match="must be a model with vectors, got ItemKnn; name another one"):
        load_vectors(tmp_path / "model")
