import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_array

from embeddings.assign import assign
from embeddings.compress import compress
from embeddings.graph import degrees
from embeddings.id_map import IdMap, Narrow
from embeddings.names import COMPRESSORS, WITHOUT_NARROW
from embeddings.narrow import with_narrow_rows
from embeddings.refresh import refresh
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.compress import Semantic

USERS, ITEMS = 220, 160


def graph(seed=0):
    """Five groups of users with their items, noise, and a user and an item without interactions."""
    rng = np.random.default_rng(seed)
    likes = np.equal.outer(np.arange(USERS) % 5, np.arange(ITEMS) % 5)
    pairs = rng.random((USERS, ITEMS)) < np.where(likes, 0.2, 0.01)
    pairs[-1], pairs[:, -1] = False, False
    return csr_array(pairs.astype(np.float32))


def count(id_map):
    """Rows beside the unseen one, narrow ones as their share."""
    narrow = id_map.narrow.rows * id_map.narrow.share if id_map.narrow else 0
    return id_map.wide_rows - 1 + narrow


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name not in WITHOUT_NARROW])
@pytest.mark.parametrize("share", [0.125, 0.5])
def test_every_seen_id_has_a_row_of_its_own_within_the_budget(name, share):
    train, rows = graph(), (180, 130)
    for id_map, wanted, counts in zip(
        compress(name, train, *rows, narrow=(share, share)), rows, degrees(train), strict=True
    ):
        weights = np.ones(id_map.rows.shape) if id_map.weights is None else id_map.weights
        used = (weights != 0) & (counts > 0)[:, None]
        users = np.bincount(id_map.rows[used], minlength=id_map.num_rows)
        own = (used & (users == 1)[id_map.rows]).any(axis=1)
        assert own[counts > 0].all()
        assert count(id_map) <= wanted
        if id_map.narrow:
            assert (users[id_map.wide_rows :] == 1).all() and id_map.narrow.share == share
        unseen = np.flatnonzero(counts == 0)
        assert (np.where(weights[unseen] != 0, id_map.rows[unseen], -1) < id_map.wide_rows).all()


def test_rows_that_frequent_ids_do_not_need_as_narrow_ones_are_used():
    train, rng = graph(), np.random.default_rng(0)
    codes = [SemanticCodes(rng.integers(0, 8, (size, 3), dtype=np.int32), (8, 8, 8)) for size in train.shape]
    semantic = Semantic(*codes)
    users, items = compress("semantic_ngram", train, 180, 130, semantic=semantic, narrow=(0.5, 0.5))
    for id_map, wanted in ((users, 180), (items, 130)):
        assert 0.98 * wanted < count(id_map) <= wanted
    plain = compress("semantic_ngram", train, users.wide_rows - 1, items.wide_rows - 1, semantic=semantic)
    for id_map, without in zip((users, items), plain, strict=True):
        assert np.array_equal(id_map.rows[:, :-1], without.rows)  # the wide rows are those of as many rows


def test_a_map_with_narrow_rows_is_saved_whole_and_says_what_it_cannot_be(tmp_path):
    users, _ = compress("modulo", graph(), 100, 80, narrow=(0.25, 0.25))
    users.save(tmp_path / "map.safetensors")
    again = IdMap.load(tmp_path / "map.safetensors")
    assert again.narrow == users.narrow == Narrow(USERS - 1, 0.25)
    assert np.array_equal(again.rows, users.rows) and np.array_equal(again.weights, users.weights)
    assert users.narrow.columns(64) == 16 and Narrow(1, 0.001).columns(64) == 1
    with pytest.raises(ValueError, match="is narrow and cannot be the unseen row"):
        dataclasses.replace(users, unseen_row=users.num_rows - 1)
    for rows, share in ((0, 0.5), (3, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="narrow rows are at least 1, of a share in"):
            Narrow(rows, share)


def test_too_many_narrow_rows_and_compressors_without_them_are_refused():
    with pytest.raises(ValueError, match=r"as much as 110 whole rows, but users have 90, so that no"):
        compress("modulo", graph(), 90, 100, narrow=(0.5, 0.5))
    with pytest.raises(ValueError, match="full has no narrow rows"):
        compress("full", graph(), 90, 100, narrow=(0.5, 0.5))


@pytest.mark.parametrize("name", ["multi_graphhash", "baco", "residual_codes"])
def test_new_ids_join_the_wide_rows(name):
    train = graph()
    old = csr_array(train[:200])
    users, _ = compress(name, old, 120, 100, narrow=(0.125, 0.125))
    plain = dataclasses.replace(
        users,
        rows=users.rows[:, :-1].copy(),
        weights=users.weights[:, :-1].copy(),
        num_rows=users.wide_rows,
        narrow=None,
    )
    grown, expected = assign(csr_array(train[200:]), old, users), assign(csr_array(train[200:]), old, plain)
    assert grown.num_ids == USERS and grown.narrow == users.narrow and grown.num_rows == users.num_rows
    assert np.array_equal(grown.rows[:200], users.rows) and np.array_equal(grown.weights[:200], users.weights)
    assert np.array_equal(grown.rows[:, :-1], expected.rows) and np.array_equal(grown.weights[:, :-1], expected.weights)
    assert (grown.weights[200:, -1] == 0).all()


def test_an_id_whose_places_are_one_row_owns_it() -> None:
    id_map = IdMap(np.array([[0, 0], [1, 2], [1, 2]]), 4, 3, "double_hash")
    users, _ = with_narrow_rows(lambda *rows: (id_map, id_map), (9, 9), (np.ones(3, int),) * 2, (0.5, 0.5))
    assert users.narrow == Narrow(2, 0.5)
    assert users.rows[:, -1].tolist()[1:] == [4, 5] and users.weights[:, -1].tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", ["frequency", "multi_graphhash", "semantic_spm"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_search_is_short_and_tries_nothing_that_is_known_not_to_fit(name, share):
    train, tried = graph(), []

    def make(users, items):
        tried.append(items)
        return compress(name, train, users, items)

    with_narrow_rows(make, (218, 158), degrees(train), (share, share))
    assert len(tried) <= 10
    fits = [later for at, later in enumerate(tried) if later in tried[at + 1 :]]
    assert all(one == tried[-1] for one in fits)  # only the best is made again, for the other side's sake


def test_narrow_rows_are_not_carried_over() -> None:
    users, _ = compress("modulo", graph(), 100, 80, narrow=(0.25, 0.25))
    plain, _ = compress("modulo", graph(), 100, 80)
    for old, new in ((users, plain), (plain, users)):
        with pytest.raises(ValueError, match="refresh fits whole rows and cannot carry narrow ones over; train"):
            refresh(old, new, np.zeros((old.num_rows, 4), np.float32), {})
