"""Quality figures against hand counts, and a message for each gate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.quality import GateError, Gates, check, hierarchy, measure, reconstruction_error
from embeddings.semantic_id.residual import fit_residual


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def tree() -> tuple[SemanticCodes, np.ndarray]:
    """Vectors whose cosine grows with the shared prefix."""
    draw = generator()
    codes = np.stack(np.unravel_index(np.arange(240) // 2, (4, 5, 6)), axis=1).astype(np.int32)
    parts = [draw.standard_normal((np.prod((4, 5, 6)[: n + 1]), 32)) for n in range(3)]
    places = [codes[:, 0], codes[:, 0] * 5 + codes[:, 1], np.arange(240) // 2]
    vectors = sum(part[place] for part, place in zip(parts, places, strict=True))
    return SemanticCodes(codes, (4, 5, 6)), vectors.astype(np.float32)


def good() -> dict[str, Any]:
    codes, vectors = tree()
    return measure(codes, vectors, vectors, generator())


def test_figures_of_a_hand_made_catalogue() -> None:
    codes = SemanticCodes(np.array([[0, 1], [0, 1], [0, 2], [1, 0]], dtype=np.int32), (4, 3))
    quality = measure(codes, None, None, generator())
    first, second = quality["levels"]
    assert (first["used"], first["usage"], first["largest"]) == (2, 0.5, 3)
    np.testing.assert_allclose(first["entropy"], -0.75 * np.log2(0.75) - 0.25 * np.log2(0.25))
    np.testing.assert_allclose(first["entropy_share"], first["entropy"] / 2)
    assert second["entropy"] == 1.5
    facts = ("items", "distinct", "colliding", "colliding_share", "largest_collision", "prefix_share", "error")
    assert [quality[name] for name in facts] == [4, 3, 2, 0.5, 2, 0.75, None]
    assert quality["hierarchy"] == []


def test_reconstruction_error_between_perfect_and_the_mean() -> None:
    vectors = generator().standard_normal((50, 4)).astype(np.float32)
    assert reconstruction_error(vectors, vectors) == 0
    np.testing.assert_allclose(reconstruction_error(vectors, np.tile(vectors.mean(0), (50, 1))), 1, rtol=1e-5)
    assert reconstruction_error(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)) == 0
    codes = [fit_residual(vectors, (4,) * n, generator()) for n in (1, 3)]
    errors = [reconstruction_error(vectors, quantiser.decode(code)) for quantiser, code in codes]
    assert 1 > errors[0] > errors[1] > 0


def test_the_mean_of_many_vectors_is_exact() -> None:
    vectors = (1003 + 0.01 * generator().standard_normal((50_000, 3))).astype(np.float32)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_allclose(reconstruction_error(vectors, np.tile(mean, (len(vectors), 1))), 1, rtol=1e-3)


def test_cosine_grows_with_the_shared_prefix() -> None:
    codes, vectors = tree()
    found = hierarchy(codes, vectors, generator())
    assert [entry["shared"] for entry in found] == [0, 1, 2, 3]
    cosines = [entry["cosine"] for entry in found]
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.1
    np.testing.assert_allclose(cosines[3], 1, rtol=1e-5)
    assert sum(entry["pairs"] for entry in found) == 4 * 239


def test_good_codes_pass() -> None:
    check(good(), Gates(max_colliding=1.0, max_prefix_share=0.3))


@pytest.mark.parametrize(
    ("change", "gates", "message"),
    [
        ({"error": 0.95}, {}, r"reconstruction error 0.950 > max_error 0.9: add a level, widen the levels, or train"),
        (
            {},
            {"max_colliding": 0.1},
            r"240 of 240 items share their code, a share above max_colliding 0.1: add a level",
        ),
        ({"prefix_share": 0.8}, {}, r"one first code has a share of 0.800 of the items, above max_prefix_share 0.5"),
        ({"prefix_share": 0.8, "widths": [8]}, {}, r"share of 0.800 of the items, above max_prefix_share 0.25"),
        ({"prefix_share": 0.4}, {"max_prefix_share": 0.3}, r"share of 0.400 of the items, above max_prefix_share 0.3"),
        (
            {"hierarchy": [{"cosine": 0.5}, {"cosine": 0.4}]},
            {},
            r"longest shared prefix have mean cosine 0.400, those with none 0.500: the codes are no hierarchy",
        ),
        ({}, {"min_usage": 1.1}, r"level 1 has usage 1.000 < min_usage 1.1 \(4 of 4 codes used\): make it narrower"),
        ({}, {"min_entropy": 1.1}, r"level 3 has entropy_share 1.000 < min_entropy 1.1 \(6 of 6 codes used\)"),
    ],
)
def test_each_gate_says_what_to_change(change: dict[str, Any], gates: dict[str, float], message: str) -> None:
    loose = dataclasses.replace(Gates(max_colliding=1.0), **gates)
    with pytest.raises(GateError, match=message):
        check(good() | change, loose)


def test_all_failed_gates_are_told_at_once() -> None:
    with pytest.raises(GateError, match=r"semantic codes fail 2 quality gate\(s\):\n- reconstruction(.|\n)*\n- 240 of"):
        check(good() | {"error": 2.0}, Gates())


def test_codes_without_items() -> None:
    empty = SemanticCodes(np.zeros((0, 2), dtype=np.int32), (3, 3))
    quality = measure(empty, None, None, generator())
    assert quality["levels"][0]["entropy"] == 0
    assert quality["distinct"] == 0
