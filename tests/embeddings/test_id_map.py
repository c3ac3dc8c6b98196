"""Properties of id maps, and every way in which a file of one can be bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.id_map import IdMap


@st.composite
def id_maps(draw: st.DrawFn) -> IdMap:
    num_ids, per_id, num_rows = draw(st.integers(0, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = generator.random((num_ids, per_id), dtype=np.float32) if draw(st.booleans()) else None
    info = draw(st.dictionaries(st.text(max_size=5), st.none() | st.integers(-9, 9) | st.text(max_size=5), max_size=3))
    rows = generator.integers(0, num_rows, (num_ids, per_id))
    return IdMap(rows, num_rows, draw(st.integers(0, num_rows - 1)), draw(st.text(max_size=8)), weights, info)


@settings(max_examples=60, deadline=None)
@given(original=id_maps())
def test_a_saved_map_comes_back_whole(original: IdMap, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("maps") / "map.safetensors"
    original.save(path)
    loaded = IdMap.load(path)
    np.testing.assert_array_equal(loaded.rows, original.rows)
    assert loaded.rows.dtype == np.int64
    if original.weights is None:
        assert loaded.weights is None
    else:
        np.testing.assert_array_equal(loaded.weights, original.weights)
    scalars = ("num_rows", "unseen_row", "compressor", "info")
    assert [getattr(loaded, name) for name in scalars] == [getattr(original, name) for name in scalars]
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@settings(max_examples=60, deadline=None)
@given(id_map=id_maps(), ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 15), max_size=20))
def test_lookup_of_any_int64(id_map: IdMap, ids: list[int]) -> None:
    rows = id_map.lookup(np.array(ids, dtype=np.int64))
    weights = id_map.lookup_weights(np.array(ids, dtype=np.int64))
    assert rows.shape == weights.shape == (len(ids), id_map.rows_per_id)
    for position, one in enumerate(ids):
        if 0 <= one < id_map.num_ids:
            assert rows[position].tolist() == id_map.rows[one].tolist()
            expected = np.ones(id_map.rows_per_id) if id_map.weights is None else id_map.weights[one]
            assert weights[position].tolist() == expected.tolist()
        else:
            assert set(rows[position].tolist()) == {id_map.unseen_row}
            assert weights[position].tolist() == [1.0] + [0.0] * (id_map.rows_per_id - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.zeros(3, dtype=np.int64)}, r"shape \[N, H\] with H >= 1, got \[3\]"),
        ({"rows": np.zeros((3, 0), dtype=np.int64)}, r"got \[3, 0\]"),
        ({"rows": np.zeros((3, 1), dtype=np.int32)}, "must be int64, got int32"),
        ({"rows": np.array([[0], [4], [-1]])}, r"\[0, 4\), but id 1 has rows \[4\] \(2 bad ids in all\)"),
        ({"weights": np.ones((3, 2), dtype=np.float32)}, r"shape of rows \[3, 1\], got \[3, 2\]"),
        ({"weights": np.ones((3, 1))}, "weights must be float32, got float64"),
        ({"unseen_row": 4}, r"unseen_row must lie in \[0, 4\), got 4"),
    ],
)
def test_bad_arguments_name_the_fault(change: dict[str, Any], message: str) -> None:
    good = {"rows": np.zeros((3, 1), dtype=np.int64), "num_rows": 4, "unseen_row": 3, "compressor": "modulo"}
    IdMap(**good)
    with pytest.raises(ValueError, match=message):
        IdMap(**(good | change))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rows = np.array([[0, 1], [2, 3], [4, 4]])
    path = tmp_path / "map.safetensors"
    IdMap(rows, 5, 4, "double_hash", np.ones((3, 2), dtype=np.float32), {"resolution": 2.5}).save(path)
    return path


def test_every_truncation_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in range(len(whole)):
        saved.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"map\.safetensors"):
            IdMap.load(saved)


def test_every_changed_byte_is_refused_or_harmless(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    original = IdMap.load(saved)
    refused = 0
    for position in range(len(whole)):
        damaged = whole.copy()
        damaged[position] ^= 0x15
        saved.write_bytes(damaged)
        try:
            loaded = IdMap.load(saved)
        except ValueError as error:
            assert "map.safetensors" in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(loaded.rows, original.rows)
            assert (loaded.num_rows, loaded.compressor, loaded.info) == (5, "double_hash", {"resolution": 2.5})
    assert refused > 0.9 * len(whole)


def _forged(facts: dict[str, Any], tensors: dict[str, Any]) -> bytes:
    from embeddings.id_map import _checksum

    text = json.dumps(facts)
    return safetensors.numpy.save(tensors, metadata={"id_map": f"{_checksum(text, tensors):08x}{text}"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"PK\x03\x04 some zip", "not a whole safetensors file"),
        (
            safetensors.numpy.save({"weight": np.zeros((2, 2), dtype=np.float32)}),
            "is not an id map: its header must say",
        ),
        (safetensors.numpy.save({"a": np.zeros(1)}, metadata={"id_map": "nonsense"}), "is not an id map"),
        (
            _forged({"format": "recsys id map 1"}, {"rows": np.zeros((1, 1), dtype=np.int64)}),
            "no valid id map: 'num_rows'",
        ),
        (
            _forged({"format": "recsys id map 1"}, {"other": np.zeros((1, 1), dtype=np.int64)}),
            "no valid id map: 'rows'",
        ),
        (
            _forged(
                {"format": "recsys id map 1", "num_rows": 2, "unseen_row": 1, "compressor": "x", "info": {}},
                {"rows": np.array([[0], [7]])},
            ),
            r"no valid id map: IdMap rows must lie in \[0, 2\), but id 1 has rows \[7\]",
        ),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        IdMap.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        IdMap.load(tmp_path / "none.safetensors")


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("embeddings.atomic.os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        IdMap(np.zeros((9, 1), dtype=np.int64), 1, 0, "modulo").save(saved)
    assert saved.read_bytes() == before
    assert [child.name for child in saved.parent.iterdir()] == [saved.name]
