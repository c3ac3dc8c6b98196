"""Masked features and dropped values stand for "missing" and nothing else changes."""

from __future__ import annotations

import numpy as np

from recsys.feature_masks import drop_features, drop_values, mask_features
from recsys.features import Categorical, Features, MultiCategorical, Numeric
from tests.recsys.tower_fixture import described

FEATURES = described(50)


def same(one: Features, two: Features) -> bool:
    return all(np.array_equal(array, two.arrays()[name]) for name, array in one.arrays().items())


def test_a_masked_column_is_missing_in_every_row_and_the_others_are_as_before() -> None:
    for place in range(4):
        masked = mask_features(FEATURES, np.arange(4) == place)
        for other, (before, after) in enumerate(zip(FEATURES.columns, masked.columns, strict=True)):
            if other == place:
                assert after.missing.all()
            else:
                assert after is before
    number = mask_features(FEATURES, np.ones(4, bool)).columns[3]
    assert isinstance(number, Numeric) and not number.values.any()


def test_masks_by_row() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((50, 4)) < 0.5
    masked = mask_features(FEATURES, masks)
    for place, (before, after) in enumerate(zip(FEATURES.columns, masked.columns, strict=True)):
        assert np.array_equal(after.missing, before.missing | masks[:, place])
    kept = np.flatnonzero(~masks.any(1)).astype(np.int64)
    tags = FEATURES.columns[2]
    assert isinstance(tags, MultiCategorical)
    filled = drop_values(FEATURES, 1e-12, rng).take(kept)  # an empty list becomes one unseen value in both
    whole = mask_features(FEATURES, masks).take(kept)
    assert same(filled, whole)


def test_dropped_values_leave_the_share_that_they_should() -> None:
    offsets = np.arange(0, 30001, 30, dtype=np.int64)
    values = np.tile(np.arange(30), 1000).astype(np.int64)
    lists = Features(1000, (MultiCategorical("m", values, offsets, 30, np.ones(30000, np.float32)),))
    (column,) = drop_values(lists, 0.3, np.random.default_rng(0)).columns
    assert isinstance(column, MultiCategorical) and column.weights is not None
    assert abs(len(column.values) / 30000 - 0.7) < 0.01
    assert (np.diff(column.values)[np.diff(np.repeat(np.arange(1000), np.diff(column.offsets))) == 0] > 0).all()


def test_a_list_that_loses_everything_is_missing() -> None:
    lists = Features(2, (MultiCategorical("m", np.array([0, 1]), np.array([0, 1, 2]), 3),))
    (column,) = drop_values(lists, 1 - 1e-9, np.random.default_rng(0)).columns
    assert isinstance(column, MultiCategorical)
    assert column.values.tolist() == [3, 3] and column.offsets.tolist() == [0, 1, 2]


def test_dropped_features_never_leave_a_row_empty() -> None:
    ids = np.zeros(4000, dtype=np.int64)
    features = Features(4000, (Categorical("a", ids, 1), Categorical("b", ids, 1)))
    dropped = drop_features(features, 0.5, np.random.default_rng(0))
    missing = np.stack([column.missing for column in dropped.columns])
    assert not missing.all(0).any()
    assert np.allclose(missing.mean(1), 0.25, atol=0.03)  # 1/2, less the rows that would have lost both
    assert drop_features(features, 0.0, np.random.default_rng(0)) is features
