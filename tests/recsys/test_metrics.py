from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

from recsys.metrics.beyond_accuracy import coverage, gini, novelty
from recsys.metrics.ranking import hit_matrix, ndcg_curve, ranking_metrics, recall_curve

RANX = {"recall": "recall", "ndcg": "ndcg", "map": "map", "mrr": "mrr", "hit": "hit_rate", "precision": "precision"}


def random_lists(seed: int, users: int = 60, items: int = 80, length: int = 30) -> tuple[np.ndarray, csr_array]:
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(items)[:length] for _ in range(users)]).astype(np.int32)
    relevant = rng.random((users, items)) < rng.uniform(0.01, 0.6, (users, 1))
    relevant[:, 0] = True
    return lists, csr_array(relevant.astype(np.float32))


_RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
lists, relevant, names = json.load(sys.stdin)
qrels = Qrels({f"u{u}": {f"i{i}": 1 for i in row} for u, row in enumerate(relevant)})
run = Run({f"u{u}": {f"i{i}": 1.0 - j / 100 for j, i in enumerate(row)} for u, row in enumerate(lists)})
evaluate(qrels, run, names, make_comparable=True)
print(json.dumps({name: [run.scores[name][f"u{u}"] for u in range(len(lists))] for name in names}))
"""


def ranx_scores(lists: np.ndarray, relevant: csr_array, names: list[str]) -> dict[str, list[float]]:
    """Its kernels as plain Python, in a process of their own: to compile them takes minutes."""
    rows = [relevant[[u]].indices.tolist() for u in range(len(lists))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RANX],
        input=json.dumps([lists.tolist(), rows, names]),
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_equal_to_ranx() -> None:
    lists, relevant = random_lists(0)
    ks = (1, 5, 20, 30)
    found = ranking_metrics(hit_matrix(lists, relevant), np.diff(relevant.indptr).astype(np.int64), ks)
    expected = ranx_scores(lists, relevant, [f"{theirs}@{k}" for theirs in RANX.values() for k in ks])
    for ours, theirs in RANX.items():
        for k in ks:
            np.testing.assert_allclose(found[f"{ours}@{k}"], expected[f"{theirs}@{k}"], atol=1e-12, err_msg=ours)


def test_hand_computed() -> None:
    lists = np.array([[7, 1, 3, 9], [2, -1, -1, -1]], dtype=np.int32)
    relevant = csr_array(np.isin(np.arange(10), [1, 9, 4])[None].repeat(2, axis=0).astype(np.float32))
    found = ranking_metrics(hit_matrix(lists, relevant), np.array([3, 3]), [2, 4])
    assert found["recall@2"].tolist() == [1 / 3, 0]
    assert found["recall_capped@2"].tolist() == [1 / 2, 0]
    assert found["recall_capped@4"].tolist() == [2 / 3, 0]
    assert found["precision@4"].tolist() == [1 / 2, 0]
    assert found["mrr@4"].tolist() == [1 / 2, 0]
    assert found["hit@2"].tolist() == [1, 0]
    assert found["map@4"][0] == pytest.approx((1 / 2 + 2 / 4) / 3)
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert found["ndcg@4"][0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / ideal)
    assert found["ndcg@2"][0] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))


def test_curves_are_the_metrics_at_every_k() -> None:
    lists, relevant = random_lists(3)
    hits, counts = hit_matrix(lists, relevant), np.diff(relevant.indptr).astype(np.int64)
    found = ranking_metrics(hits, counts, range(1, 31))
    for k in range(1, 31):
        np.testing.assert_array_equal(recall_curve(hits, counts)[:, k - 1], found[f"recall@{k}"])
        np.testing.assert_array_equal(ndcg_curve(hits, counts)[:, k - 1], found[f"ndcg@{k}"])


def test_perfect_lists_score_one() -> None:
    relevant = csr_array(np.tri(9, dtype=np.float32))
    lists = np.stack([np.r_[np.arange(u + 1), np.full(8 - u, -1)] for u in range(9)]).astype(np.int32)
    found = ranking_metrics(hit_matrix(lists, relevant), np.arange(1, 10), [9])
    for name in ("recall@9", "recall_capped@9", "ndcg@9", "map@9", "mrr@9", "hit@9"):
        np.testing.assert_allclose(found[name], 1, err_msg=name)


def test_errors_say_what_came() -> None:
    hits = np.zeros((2, 3), dtype=bool)
    with pytest.raises(ValueError, match="row 1 has none"):
        ranking_metrics(hits, np.array([1, 0]), [1])
    with pytest.raises(ValueError, match=r"k must lie in \[1, 3\], the length of the lists, got 4"):
        ranking_metrics(hits, np.array([1, 1]), [1, 4])
    with pytest.raises(ValueError, match="got 2 and 1 rows"):
        hit_matrix(np.zeros((2, 3), dtype=np.int32), csr_array((1, 5), dtype=np.float32))


def test_beyond_accuracy() -> None:
    lists = np.array([[0, 1], [0, -1], [0, 1]], dtype=np.int32)
    assert coverage(lists, 4) == 0.5
    counts = np.array([3, 2, 0, 0])
    pairwise = np.abs(counts[:, None] - counts).sum() / (2 * 4 * counts.sum())
    assert gini(lists, 4) == pytest.approx(pairwise)
    assert gini(np.array([[0, 1, 2, 3]], dtype=np.int32), 4) == 0
    assert gini(np.full((2, 2), -1, dtype=np.int32), 4) == 0
    found = novelty(np.array([[0, 1], [2, -1], [-1, -1]], dtype=np.int32), np.array([8, 2, 0, 1]), 8)
    np.testing.assert_allclose(found, [(0 + 2) / 2, 3, 0])
