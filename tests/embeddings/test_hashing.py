"""Universal hashing against Python integers, and the uniqueness of quotient-remainder codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.hashing import PRIME, UniversalHash, quotient_remainder

below_prime = st.integers(0, PRIME - 1) | st.integers(PRIME - 3, PRIME - 1)


@given(a=below_prime, b=below_prime, buckets=st.integers(1, 2**31), ids=st.lists(below_prime, max_size=30))
def test_equals_python_integers(a: int, b: int, buckets: int, ids: list[int]) -> None:
    got = UniversalHash(a, b, buckets)(np.array(ids, dtype=np.int64))
    assert got.tolist() == [((a * x + b) % PRIME) % buckets for x in ids]


def test_the_largest_values_do_not_overflow() -> None:
    assert UniversalHash(PRIME - 1, PRIME - 1, 10**6)(np.array([PRIME - 1])).tolist() == [
        ((PRIME - 1) ** 2 + PRIME - 1) % PRIME % 10**6
    ]
    assert (PRIME - 1) ** 2 + PRIME - 1 < 2**63


def test_two_ids_collide_about_once_in_m_draws() -> None:
    """The defining property: Pr over the family of h(x) = h(y) is at most about 1 / m."""
    generator = np.random.default_rng(0)
    pairs = generator.integers(0, 10**6, (500, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    hits = sum(
        int((h(pairs[:, 0]) == h(pairs[:, 1])).sum()) for h in (UniversalHash.draw(50, generator) for _ in range(400))
    )
    draws = 400 * len(pairs)
    assert hits / draws == pytest.approx(1 / 50, abs=5 * np.sqrt(1 / 50 / draws))


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one bucket, got 0"):
        UniversalHash.draw(0, np.random.default_rng(0))
    h = UniversalHash(1, 0, 5)
    with pytest.raises(ValueError, match=r"ids in \[0, 2,147,483,647\), got -1 at position 1"):
        h(np.array([3, -1]))
    with pytest.raises(ValueError, match=r"got 2147483647 at position 0"):
        h(np.array([PRIME]))


@given(num_ids=st.integers(1, 400), rows=st.integers(1, 200))
def test_quotient_and_remainder_rows_are_unique_codes_where_possible(num_ids: int, rows: int) -> None:
    codes = quotient_remainder(np.arange(num_ids), num_ids, rows)
    assert codes.min() >= 0
    assert codes.max() < rows
    possible = any(r + -(-num_ids // r) <= rows for r in range(1, rows))
    if possible:
        assert len(np.unique(codes, axis=0)) == num_ids
    if rows > 1:
        assert codes[:, 0].max() < codes[:, 1].min()
