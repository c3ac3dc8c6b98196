"""Columns to features: fitted on the rows that training saw, applied to all, and every mistake named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfTransformer

from pipelines.config_features import CategoricalEncoding, Encoding, ListEncoding, NumericEncoding, TextEncoding
from pipelines.errors import DataError
from pipelines.features import FeatureEncoder, default_encodings
from recsys.features import Categorical, MultiCategorical, Numeric

FRAME = pl.DataFrame(
    {
        "raw_id": ["a", "b", "c", "d", "e"],
        "colour": ["red", "blue", "red", None, "green"],
        "tags": [["x", "y"], ["y", None], [], None, ["z", "x"]],
        "price": [1.0, 3.0, None, 5.0, 1000.0],
        "blurb": ["Red wine", "white WINE, wine!", None, "", "beer"],
        "nothing": pl.Series([None, None, None, None, "late"], dtype=pl.String),
        "broken": [1.0, float("nan"), 2.0, float("inf"), 3.0],
        "huge": [1.0, 1e308, 1e308, 2.0, 3.0],
        "symbols": ["!!", "", None, "-", "word"],
        "empty": [[], [None], None, [], ["late"]],
    }
)
SEEN = np.array([True, True, True, True, False])


def encode(**encodings: Encoding) -> Any:
    encoder = FeatureEncoder.fit(FRAME, encodings, SEEN)
    (column,) = encoder.encode(FRAME).columns
    return column


def test_a_vocabulary_knows_only_what_training_saw() -> None:
    column = encode(colour=CategoricalEncoding())
    assert isinstance(column, Categorical)
    assert column.size == 2
    assert column.ids.tolist() == [1, 0, 1, 2, 2]  # blue, red; null and green have the last id


def test_rare_values_and_those_beyond_the_size_are_unseen() -> None:
    assert encode(colour=CategoricalEncoding(min_count=2)).ids.tolist() == [0, 1, 0, 1, 1]
    column = encode(colour=CategoricalEncoding(max_size=1))
    assert column.size == 1 and column.ids.tolist() == [0, 1, 0, 1, 1]


def test_integers_and_flags_are_categories_too() -> None:
    frame = pl.DataFrame({"n": [7, 11, 7], "flag": [True, False, None], "nan": [0.5, float("nan"), 0.5]})
    encodings = dict.fromkeys(frame.columns, CategoricalEncoding())
    features = FeatureEncoder.fit(frame, encodings, np.ones(3, bool)).encode(frame)
    assert [column.ids.tolist() for column in features.columns if isinstance(column, Categorical)] == [
        [1, 0, 1],
        [1, 0, 2],
        [0, 1, 0],
    ]


def test_lists_lose_unknown_values_and_keep_one_where_nothing_is_left() -> None:
    column = encode(tags=ListEncoding())
    assert isinstance(column, MultiCategorical)
    assert column.size == 2
    assert column.values.tolist() == [0, 1, 1, 2, 2, 0]
    assert column.offsets.tolist() == [0, 2, 3, 4, 5, 6]


def test_numbers_are_scaled_by_the_seen_rows() -> None:
    column = encode(price=NumericEncoding())
    assert isinstance(column, Numeric)
    assert column.missing.tolist() == [False, False, True, False, False]
    deviation = np.std([1, 3, 5])
    assert np.allclose(column.values, [-2 / deviation, 0, 0, 2 / deviation, 997 / deviation])
    logs = np.log1p([1, 3, 5])
    column = encode(price=NumericEncoding(transform="log"))
    assert np.allclose(column.values[[0, 1, 3]], (logs - logs.mean()) / logs.std())
    constant = pl.DataFrame({"x": [0.1] * 7 + [1.1]})  # whose deviation is 1.4e-17 by rounding
    encoder = FeatureEncoder.fit(constant, {"x": NumericEncoding()}, np.arange(8) < 7)
    (column,) = encoder.encode(constant).columns
    assert isinstance(column, Numeric) and np.allclose(column.values, [0.0] * 7 + [1.0])
    new = pl.DataFrame({"raw_id": ["p", "q"], "price": [None, 1e300]})
    encoder = FeatureEncoder.fit(FRAME, {"price": NumericEncoding()}, SEEN)
    with pytest.raises(DataError, match=r"'price': 'q' has 1e\+300, which is too large to be scaled; use transform"):
        encoder.encode(new)


def test_quantiles_have_equal_shares_of_the_seen_rows() -> None:
    frame = pl.DataFrame({"x": [*np.arange(100.0), None, 1e9, -1e9]})
    encoder = FeatureEncoder.fit(frame, {"x": NumericEncoding(transform="quantiles", buckets=4)}, np.arange(103) < 100)
    (column,) = encoder.encode(frame).columns
    assert isinstance(column, Categorical)
    assert np.bincount(column.ids[:100]).tolist() == [25, 25, 25, 25]
    assert column.ids[100:].tolist() == [4, 3, 0]


def test_text_is_tf_idf_as_scikit_learn_has_it() -> None:
    column = encode(blurb=TextEncoding(buckets=1 << 20))
    assert isinstance(column, MultiCategorical) and column.weights is not None
    dense = np.zeros((5, column.size + 1))
    dense[np.repeat(np.arange(5), np.diff(column.offsets)), column.values] = column.weights
    words = sorted(set(column.values[:4].tolist()))
    assert len(words) == 3  # red, wine, white; beer was not in train, and has a bucket all the same
    counts = np.array([[1, 1, 0], [0, 2, 1], [0, 0, 0], [0, 0, 0]])
    expected = TfidfTransformer().fit_transform(counts).toarray()
    wine, red, white = int(np.argmax(dense[1])), *(set(words) - {int(np.argmax(dense[1]))})
    found = dense[:4][:, sorted([red, white], key=lambda word: dense[0, word] == 0)]
    assert np.allclose(np.c_[found[:, 0], dense[:4, wine], found[:, 1]], expected)
    assert np.flatnonzero(dense[2]).tolist() == [column.size]  # no text: one unseen word of weight one
    assert np.allclose(np.linalg.norm(dense, axis=1), 1.0)
    silent = FeatureEncoder.fit(FRAME, {"blurb": TextEncoding(buckets=8)}, SEEN).encode(FRAME[2:4])
    assert silent.columns[0].missing.all()


def test_only_the_heaviest_words_are_kept() -> None:
    column = encode(blurb=TextEncoding(buckets=1 << 20, max_words=1))
    assert np.diff(column.offsets).tolist() == [1] * 5
    assert column.values[0] != column.values[1]  # red is rarer than wine


def test_an_encoder_comes_back_from_its_file_and_encodes_new_rows(tmp_path: Path) -> None:
    kinds = {"colour": "categorical", "tags": "list", "price": "numeric", "blurb": "text"}
    encoder = FeatureEncoder.fit(FRAME, default_encodings(kinds), SEEN)
    encoder.save(tmp_path / "features.json")
    again = FeatureEncoder.load(tmp_path / "features.json")
    assert again == encoder
    new = FRAME.reverse()
    one, two = encoder.encode(new).arrays(), again.encode(new).arrays()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    taken = encoder.encode(FRAME).take(np.arange(5)[::-1].astype(np.int64)).arrays()
    assert all(np.array_equal(one[name], taken[name]) for name in one)
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(DataError, match=re.escape("features.json is no feature encoder")):
        FeatureEncoder.load(tmp_path / "features.json")


@pytest.mark.parametrize(
    ("encodings", "message"),
    [
        ({"color": CategoricalEncoding()}, r"there is no feature 'color'; did you mean colour"),
        ({"nothing": CategoricalEncoding()}, r"'nothing' has no value in the 4 rows that training sees; remove it"),
        (
            {"colour": CategoricalEncoding(max_size=1, on_overflow="error")},
            r"'colour' has 2 values in train, max_size is 1, the first beyond it is 'blue'; raise max_size",
        ),
        ({"empty": ListEncoding()}, r"'empty' has no value in the 4 rows that training sees; remove it"),
        ({"symbols": TextEncoding()}, r"'symbols' has no value in the 4 rows that training sees; remove it"),
        (
            {"colour": CategoricalEncoding(min_count=9)},
            r"no value of feature 'colour' is in min_count 9 rows of train, the most frequent is in 2; lower min_count",
        ),
        (
            {"broken": NumericEncoding()},
            r"feature 'broken': 'b' has nan, which is not finite; leave the cell empty .* \(2 such rows\)",
        ),
        (
            {"huge": NumericEncoding()},
            r"'huge': 'b' has 1e\+308, which is too large .* use transform: log or quantiles \(2 such rows\)",
        ),
        ({"colour": NumericEncoding()}, r"'colour' needs numbers, got String; use kind: categorical"),
        ({"tags": CategoricalEncoding()}, r"'tags' needs one value a row, got List\(String\); use kind: list"),
        ({"colour": ListEncoding()}, r"'colour' needs a list in each row, got String; use kind: categorical"),
    ],
)
def test_what_is_refused(encodings: dict[str, Encoding], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureEncoder.fit(FRAME, encodings, SEEN)


def test_a_row_without_features_is_refused_where_it_could_not_be_told_apart() -> None:
    encoder = FeatureEncoder.fit(FRAME, {"colour": CategoricalEncoding(), "tags": ListEncoding()}, SEEN)
    assert encoder.encode(FRAME).num_rows == 5
    with pytest.raises(DataError, match=r"'d' has none of the features colour, tags \(1 such rows\)"):
        encoder.encode(FRAME, allow_empty=False)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DataError, match="feature 'x' has the unknown kind 'image'"):
        default_encodings({"x": "image"})
