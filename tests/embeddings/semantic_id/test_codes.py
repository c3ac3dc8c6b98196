"""Codes: what they promise, how collisions go away, and every way in which a file of them can be bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.semantic_id.codes import FullError, SemanticCodes


def codes(*paths: tuple[int, ...], widths: tuple[int, ...] = (4, 4)) -> SemanticCodes:
    return SemanticCodes(np.array(paths, dtype=np.int32).reshape(len(paths), len(widths)), widths, "cat-1", {"a": 1})


@st.composite
def catalogues(draw: st.DrawFn) -> SemanticCodes:
    widths = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    drawn = generator.integers(0, widths, (draw(st.integers(0, 30)), len(widths)))
    return SemanticCodes(drawn.astype(np.int32), widths)


@settings(max_examples=60, deadline=None)
@given(original=catalogues())
def test_a_digit_makes_codes_unique_and_keeps_the_path(original: SemanticCodes) -> None:
    resolved = original.resolve_collisions("digit")
    assert resolved.unique
    assert resolved.levels == original.levels + 1
    np.testing.assert_array_equal(resolved.codes[:, :-1], original.codes)
    for item in range(original.num_items):
        same = [i for i in range(item) if (original.codes[i] == original.codes[item]).all()]
        assert resolved.codes[item, -1] == len(same)


@settings(max_examples=60, deadline=None)
@given(original=catalogues(), costly=st.booleans())
def test_reassignment_keeps_prefixes_and_moves_no_more_than_it_must(original: SemanticCodes, costly: bool) -> None:
    sizes = np.unique(original.codes[:, :-1], axis=0, return_counts=True)[1]
    shape = (original.num_items, original.widths[-1])
    cost = np.random.default_rng(0).random(shape, dtype=np.float32) if costly else None
    if sizes.max(initial=0) > original.widths[-1]:
        with pytest.raises(ValueError, match=r"items, but the last level has only \d codes; make it wider"):
            original.resolve_collisions("reassign", cost)
        return
    resolved = original.resolve_collisions("reassign", cost)
    assert resolved.unique
    np.testing.assert_array_equal(resolved.codes[:, :-1], original.codes[:, :-1])
    assert (resolved.codes[:, -1] != original.codes[:, -1]).sum() == original.num_items - original.distinct


def test_reassignment_costs_least_in_all() -> None:
    cost = np.array([[0.5, 9, 9, 9], [0.1, 9, 0.3, 0.2], [9, 9, 0.0, 9]], dtype=np.float32)
    resolved = codes((1, 0), (1, 0), (1, 2)).resolve_collisions("reassign", cost)
    assert resolved.codes.tolist() == [[1, 0], [1, 3], [1, 2]]
    assert resolved.source == {"a": 1, "collisions": "reassign", "colliding_before": 2}


@settings(max_examples=60, deadline=None)
@given(original=catalogues(), how=st.sampled_from(["keep", "digit", "reassign"]), seed=st.integers(0, 99))
def test_new_items_leave_the_old_codes_as_they_are(original: SemanticCodes, how: Any, seed: int) -> None:
    frozen = original
    if how == "digit":
        frozen = original.resolve_collisions(how, digit_width=64)
    elif how == "reassign":
        frozen = SemanticCodes(np.unique(original.codes, axis=0), original.widths)
    new = np.random.default_rng(seed).integers(0, original.widths, (6, original.levels)).astype(np.int32)
    below = [*frozen.codes[:, : original.levels - 1].tolist(), *new[:, :-1].tolist()]
    if how == "reassign" and max(map(below.count, below)) > frozen.widths[-1]:
        with pytest.raises(FullError, match=r"all \d codes of the last level are taken below prefix .*; tokenise all"):
            frozen.extend(new, how, "more")
        return
    longer = frozen.extend(new, how, "more")
    np.testing.assert_array_equal(longer.codes[:-6], frozen.codes)
    shared = original.levels - (how == "reassign")
    np.testing.assert_array_equal(longer.codes[-6:, :shared], new[:, :shared])
    assert (longer.widths, longer.catalogue) == (frozen.widths, "more")
    assert how == "keep" or longer.unique


def test_a_new_item_takes_the_next_digit_or_the_cheapest_free_code() -> None:
    old = codes((1, 0), (1, 0), (1, 2))
    new = np.array([[1, 0], [1, 0], [1, 3]], dtype=np.int32)
    digits = old.resolve_collisions("digit", digit_width=4).extend(new, "digit", "more")
    assert digits.codes[3:].tolist() == [[1, 0, 2], [1, 0, 3], [1, 3, 0]]
    cost = np.array([[0.0, 0.5, 9, 0.4]], dtype=np.float32)
    moved = codes((1, 0), (1, 2)).extend(new[:1], "reassign", "more", cost)
    assert moved.codes[2:].tolist() == [[1, 3]]
    assert codes((1, 2)).extend(new[:1], "digit", "more").codes.tolist() == [[1, 2], [1, 0]]


def test_new_codes_without_room_or_of_another_shape_are_refused() -> None:
    new = np.array([[0, 0], [1, 0]], dtype=np.int32)
    full = r"code \[1, 0\] has 2 item\(s\), as many as the digit tells apart; .* a larger digit_width"
    with pytest.raises(FullError, match=full) as raised:
        codes((1, 0), (1, 0), (1, 2)).resolve_collisions("digit").extend(new, "digit", "more")
    assert raised.value.item == 1
    with pytest.raises(FullError, match=r"code \[1, 0\] has 1 item\(s\), as many"):
        codes((1, 0)).extend(new, "digit", "more")
    with pytest.raises(ValueError, match="2 items have one code, but digit_width is 1; make it wider"):
        codes((1, 0), (1, 0)).resolve_collisions("digit", digit_width=1)
    with pytest.raises(ValueError, match="new codes must have the 2 levels of the old ones, got 1"):
        codes((1, 0)).extend(new[:, :1], "keep", "more")


def test_items_of_a_prefix_and_collisions() -> None:
    found = codes((1, 2), (3, 0), (1, 2), (1, 0))
    assert found.items((1,)).tolist() == [0, 2, 3]
    assert found.items((1, 2)).tolist() == [0, 2]
    assert found.items(()).tolist() == [0, 1, 2, 3]
    assert found.items((2, 2)).size == 0
    assert found.colliding.tolist() == [0, 2]
    assert (found.distinct, found.unique, found.levels, found.num_items) == (3, False, 2, 4)
    with pytest.raises(ValueError, match=r"a prefix has at most 2 codes, got \[1, 2, 3\]"):
        found.items((1, 2, 3))


def test_the_version_sees_codes_widths_and_catalogue_and_the_array_is_locked() -> None:
    first = codes((1, 2))
    assert first.version == codes((1, 2)).version
    others = [codes((1, 3)), codes((1, 2), widths=(4, 5)), SemanticCodes(first.codes, (4, 4), "cat-2")]
    assert len({first.version, *(other.version for other in others)}) == 4
    with pytest.raises(ValueError, match="read-only"):
        first.codes[0, 0] = 3


def test_codes_of_another_catalogue_are_refused() -> None:
    found = codes((1, 2), (3, 0))
    found.require("cat-1", 2)
    with pytest.raises(ValueError, match="made for catalogue 'cat-1' of 2 items, but this is catalogue 'cat-2'"):
        found.require("cat-2", 2)
    with pytest.raises(ValueError, match="catalogue 'cat-1' of 3 items; tokenise this catalogue"):
        found.require("cat-1", 3)


def test_a_file_brings_the_codes_back(tmp_path: Path) -> None:
    original, path = codes((1, 2), (3, 0)), tmp_path / "codes.safetensors"
    original.save(path)
    loaded = SemanticCodes.load(path)
    np.testing.assert_array_equal(loaded.codes, original.codes)
    assert (loaded.widths, loaded.catalogue, loaded.source) == ((4, 4), "cat-1", {"a": 1})
    assert loaded.version == original.version
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    codes((1, 2), (3, 0)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=r"codes.safetensors is not a whole safetensors file"):
        SemanticCodes.load(path)
    path.write_bytes(whole[:-4] + b"\x01\x00\x00\x00")
    with pytest.raises(ValueError, match=r"codes.safetensors is damaged: its version [0-9a-f]{16} is not that of its"):
        SemanticCodes.load(path)
    path.write_bytes(safetensors.numpy.save({"codes": np.zeros((2, 2), dtype=np.int32)}))
    with pytest.raises(ValueError, match=r"holds no semantic codes: its header must say 'recsys semantic codes 1'"):
        SemanticCodes.load(path)
    with pytest.raises(FileNotFoundError):
        SemanticCodes.load(tmp_path / "absent.safetensors")


def test_bad_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"item 1 has \[3, 4\] \(1 bad items in all\)"):
        codes((1, 2), (3, 4))
    with pytest.raises(ValueError, match=r"codes must be \[N, 2\] for widths \(4, 4\), got \(3, 1\)"):
        SemanticCodes(np.zeros((3, 1), dtype=np.int32), (4, 4))
    with pytest.raises(ValueError, match="codes must be int32, got int64"):
        SemanticCodes(np.zeros((3, 1), dtype=np.int64), (4,))
    with pytest.raises(ValueError, match=r"each level needs at least one code, got widths \(4, 0\)"):
        SemanticCodes(np.zeros((0, 2), dtype=np.int32), (4, 0))
    with pytest.raises(ValueError, match=r"cost must be \[1, 4\], got \[1, 3\]"):
        codes((1, 2)).resolve_collisions("reassign", np.zeros((1, 3), dtype=np.float32))
