from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recsys.evaluator import Evaluation, evaluate, quick_metrics
from recsys.intervals import bootstrap_means
from recsys.metrics.ranking import hit_matrix, ranking_metrics
from recsys.models.popularity import Popularity
from recsys.topk import exact_top_k

USERS, ITEMS = 90, 130


class Scores:
    """Random scores that do not look at the data."""

    def __init__(self, seed: int = 0) -> None:
        self.table = torch.from_numpy(np.random.default_rng(seed).random((USERS, ITEMS), dtype=np.float32))
        self.num_users, self.num_items = USERS, ITEMS

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return self.table[users]


def matrices(seed: int = 0) -> tuple[csr_array, csr_array]:
    """Train and test; ten users have no test item and five no train item."""
    state = np.random.default_rng(seed).choice(3, (USERS, ITEMS), p=[0.8, 0.12, 0.08])
    state[:10][state[:10] == 2] = 0
    state[20:25][state[20:25] == 1] = 0
    state[:, :4][state[:, :4] == 1] = 0
    return csr_array((state == 1).astype(np.float32)), csr_array((state == 2).astype(np.float32))


@pytest.fixture(scope="module")
def result() -> Evaluation:
    train, test = matrices()
    return evaluate(Scores(), relevant=test, seen=train, train=train, ks=(5, 20), max_k=40, bootstrap=200, seed=1)


def test_users_and_lists(result: Evaluation) -> None:
    train, test = matrices()
    assert result.users.tolist() == np.flatnonzero(np.diff(test.indptr)).tolist()
    assert result.top_items.shape == (len(result.users), 50)
    np.testing.assert_array_equal(result.top_items, exact_top_k(Scores(), result.users, 50, train).items)


def test_metrics_are_means_of_users_inside_their_intervals(result: Evaluation) -> None:
    train, test = matrices()
    hits = hit_matrix(exact_top_k(Scores(), result.users, 20, train).items, test[result.users])
    expected = ranking_metrics(hits, np.diff(test[result.users].indptr), [5, 20])
    for name, values in expected.items():
        np.testing.assert_array_equal(result.per_user[name], values)
        assert result.metrics[name] == values.mean()
        assert result.ci95[name][0] <= result.metrics[name] <= result.ci95[name][1]
    assert set(result.ci95) == set(result.per_user)
    assert {"coverage@5", "gini@20", "novelty@5", "auc"} <= set(result.metrics)
    assert result.metrics["auc"] == pytest.approx(0.5, abs=0.05)


def test_curves_pass_through_the_metrics(result: Evaluation) -> None:
    for name in ("recall", "ndcg"):
        curve = result.curves[name]
        assert {key: len(values) for key, values in curve.items()} == {"mean": 40, "low": 40, "high": 40}
        assert curve["mean"][19] == pytest.approx(result.metrics[f"{name}@20"])
        assert (np.array(curve["low"]) <= curve["mean"]).all()
        assert (np.array(curve["mean"]) <= curve["high"]).all()
        assert curve["high"][19] == pytest.approx(result.ci95[f"{name}@20"][1], rel=1e-5)


def test_slices_and_heat_map_add_up(result: Evaluation) -> None:
    _, test = matrices()
    for rows in result.slices.values():
        assert sum(row["pairs"] for row in rows) == test.nnz
    for name in ("user_activity", "cold_users"):
        rows = [row for row in result.slices[name] if row["users"]]
        mean = sum(row["users"] * row["metrics"]["recall@20"] for row in rows) / len(result.users)
        assert mean == pytest.approx(result.metrics["recall@20"])
    assert [row["users"] for row in result.slices["cold_users"]] == [5, 75]
    cold, few, more = (row["items"] for row in result.slices["cold_items"])
    assert cold == 4 and few + more == ITEMS - 4
    counts = np.array(result.heat["counts"])
    assert counts.sum() == test.nnz
    found = np.nansum(np.array(result.heat["recall@20"]) * counts)
    overall = sum(row["pairs"] * row["metrics"]["recall@20"] for row in result.slices["item_popularity"])
    assert found == pytest.approx(overall)


def test_summary_is_json(result: Evaluation) -> None:
    assert json.loads(json.dumps(result.summary()))["users"] == 80


def test_repeats_bit_for_bit(result: Evaluation) -> None:
    train, test = matrices()
    again = evaluate(Scores(), relevant=test, seen=train, train=train, ks=(5, 20), max_k=40, bootstrap=200, seed=1)
    assert json.dumps(again.summary()) == json.dumps(result.summary())


def test_catalogue_shorter_than_the_lists() -> None:
    train, test = (m[:, :7] for m in matrices())
    found = evaluate(Popularity.fit(train), relevant=test, seen=train, train=train, ks=(5, 20), bootstrap=100)
    assert len(found.curves["recall"]["mean"]) == 7
    assert found.metrics["recall@7"] == 1
    assert found.top_items.shape[1] == 50
    assert (found.top_items[:, 7:] == -1).all()


def test_users_without_a_negative_have_no_auc() -> None:
    """All but 20 users have seen what is not relevant; the interval is that of the 20."""
    train, test = (matrix.toarray() for matrix in matrices())
    train[: USERS - 20] = 1 - test[: USERS - 20]
    seen, relevant = csr_array(train), csr_array(test)
    found = evaluate(Scores(), relevant=relevant, seen=seen, train=seen, ks=(5,), bootstrap=300, seed=2)
    known = found.per_user["auc"][~np.isnan(found.per_user["auc"])]
    assert len(known) == 20 < len(found.users)
    low, high = bootstrap_means(known[:, None].astype(np.float32), 300, seed=2)
    assert found.metrics["auc"] == pytest.approx(known.mean()) and found.ci95["auc"] == (low[0], high[0])
    assert all(np.isfinite(interval).all() for interval in found.ci95.values())


@pytest.mark.filterwarnings("error")
def test_without_any_negative_there_is_no_auc() -> None:
    _, relevant = matrices()
    seen = csr_array(1 - relevant.toarray())
    found = evaluate(Scores(), relevant=relevant, seen=seen, train=seen, ks=(5,), bootstrap=100)
    assert not {"auc"} & {*found.per_user, *found.metrics, *found.ci95}
    assert found.metrics["recall@5"] > 0 and np.isfinite(found.ci95["recall@5"]).all()


def test_quick_metrics_are_the_metrics(result: Evaluation) -> None:
    train, test = matrices()
    found = quick_metrics(Scores(), test, train, ["ndcg@20", "recall@5", "map@20"])
    assert found == {name: result.metrics[name] for name in ("ndcg@20", "recall@5", "map@20")}
    assert quick_metrics(Scores(), test, train, ["recall@999"])["recall@999"] == 1


def test_relevant_items_may_come_in_any_order() -> None:
    train, test = matrices()
    coo = test.tocoo()
    order = np.lexsort((-coo.col, coo.row))
    reverse = csr_array((test.data, coo.col[order], test.indptr), shape=test.shape)
    assert not reverse.has_sorted_indices
    assert quick_metrics(Scores(), reverse, train) == quick_metrics(Scores(), test, train)


def test_errors_say_what_came() -> None:
    train, test = matrices()
    with pytest.raises(ValueError, match=r"relevant must have the model's shape \[90, 130\], got \[90, 129\]"):
        quick_metrics(Scores(), test[:, :129], train)
    with pytest.raises(ValueError, match="the split to evaluate is empty"):
        quick_metrics(Scores(), csr_array((USERS, ITEMS), dtype=np.float32), train)
    with pytest.raises(ValueError, match=r"must not be masked, but .* first: user \d+, item \d+"):
        quick_metrics(Scores(), test, test)
    with pytest.raises(ValueError, match="as recall@20; got 'recal@20'"):
        quick_metrics(Scores(), test, train, ["recal@20"])


def test_unmasked_metrics_leave_seen_items_in_the_lists() -> None:
    """User 0 has seen the most popular item, and the second one is relevant."""
    train = csr_array(np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0]], np.float32))
    relevant = csr_array(np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]], np.float32))
    found = evaluate(
        Popularity.fit(train), relevant=relevant, seen=train, train=train, ks=(1, 2), max_k=2, bootstrap=100,
        auc=False, unmasked=True,
    )  # fmt: skip
    assert found.metrics["recall@1"] == 1 and found.metrics["recall_unmasked@1"] == 0
    assert found.metrics["recall_unmasked@2"] == 1
    assert found.metrics["ndcg_unmasked@2"] == pytest.approx(1 / np.log2(3))
    assert "recall_unmasked@1" in found.ci95
