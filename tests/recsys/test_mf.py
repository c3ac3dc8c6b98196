import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from embeddings.tables.table import Table
from recsys.models.mf import MatrixFactorization


def table(ids: int, dim: int = 4, rows_per_id: int = 1) -> Table:
    rows = np.stack([(np.arange(ids) * (h + 2) + h) % 7 for h in range(rows_per_id)], 1)
    return build_table(
        IdMap(rows, 8, 7, "test"),
        dim,
        backend="torch",
        optimizer=OptimizerSpec("sgd"),
        init_std=1.0,
        generator=np.random.default_rng(ids),
    )


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_scores_are_inner_products_of_summed_rows(similarity: str) -> None:
    model = MatrixFactorization(table(5), table(6, rows_per_id=2), similarity=similarity)  # type: ignore[arg-type]
    user = model.users.weight()[torch.arange(5) * 2 % 7]
    item = model.items.weight()[torch.arange(6) * 2 % 7] + model.items.weight()[(torch.arange(6) * 3 + 1) % 7]
    if similarity == "cosine":
        user, item = user / user.norm(dim=1, keepdim=True), item / item.norm(dim=1, keepdim=True)
    assert torch.allclose(model.scores(np.arange(5)), user.detach() @ item.detach().T, atol=1e-6)


def test_an_unknown_user_gets_the_unseen_row() -> None:
    model = MatrixFactorization(table(5), table(6))
    assert torch.equal(model.user_vectors(np.array([99, -1])), model.users.weight().detach()[[7, 7]])


def test_tables_of_different_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="have one dimension, got 4 for users, 3 for items"):
        MatrixFactorization(table(5), table(6, dim=3))
