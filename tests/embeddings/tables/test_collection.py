"""Tables of several fields: every back end gives the vectors and the steps of single tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, TableCollection, build_collection

BACKENDS = ["torch", "fbgemm", "torchrec"]


def fields() -> list[Field]:
    """One identity, one shared row, one of two weighted rows; dims differ."""
    identity = IdMap(np.arange(5)[:, None], 6, 5, "full")
    shared = IdMap(np.array([[0], [1], [0], [1]]), 3, 2, "modulo")
    weights = np.array([[1.0, 0.5], [2.0, 1.0], [1.0, 0.0]], np.float32)
    double = IdMap(np.array([[0, 1], [1, 2], [2, 0]]), 4, 3, "double_hash", weights)
    return [Field("user", identity, 4), Field("item", shared, 8), Field("place", double, 4)]


def build(backend: str, name: str = "adagrad") -> TableCollection:
    spec = OptimizerSpec(name, lr=0.1)  # type: ignore[arg-type]
    draws = np.random.default_rng(0)
    return build_collection(fields(), backend=backend, optimizer=spec, init_std=0.5, generator=draws)  # type: ignore[arg-type]


def ids(step: int, size: int = 16) -> torch.Tensor:
    """Some of them unseen: negative, or beyond the last id."""
    return torch.from_numpy(np.random.default_rng(step).integers(-1, 7, (size, 3)))


def dense_oracle(collection: TableCollection, batch: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for column, field in enumerate(collection.fields):
        known = batch[:, column].numpy()
        rows, weights = field.id_map.lookup(known), field.id_map.lookup_weights(known)
        found.append((collection.weight(field.name)[rows] * torch.from_numpy(weights)[:, :, None]).sum(1))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_are_the_weighted_sums_of_the_rows_of_the_id_map(backend: str) -> None:
    collection = build(backend)
    for vector, expected in zip(collection.split(collection(ids(0))), dense_oracle(collection, ids(0)), strict=True):
        torch.testing.assert_close(vector.detach(), expected)


@pytest.mark.parametrize(
    ("backend", "name"), list(itertools.product(["fbgemm", "torchrec"], ["sgd", "adagrad", "rowwise_adagrad"]))
)
def test_back_ends_stay_equal_over_steps(backend: str, name: str) -> None:
    ours, theirs = build("torch", name), build(backend, name)
    for step in range(6):
        if step == 3:
            for collection in (ours, theirs):
                collection.set_lr(0.02)
        for collection in (ours, theirs):
            vectors = collection.split(collection(ids(step)))
            sum((i + 1) * vector.square().sum() for i, vector in enumerate(vectors)).backward()  # type: ignore[union-attr]
            collection.step()
    for field in ours.fields:
        torch.testing.assert_close(ours.weight(field.name), theirs.weight(field.name), rtol=2e-5, atol=2e-6)
    assert ours.bytes().weights == theirs.bytes().weights
    assert ours.bytes().optimizer == theirs.bytes().optimizer


def test_set_lr_scales_the_step() -> None:
    collection = build("torch", "sgd")
    before = collection.weight("user").clone()
    collection.set_lr(0.0)
    collection(ids(0)).sum().backward()
    collection.step()
    assert torch.equal(collection.weight("user"), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_dict_brings_everything_back(backend: str) -> None:
    trained, fresh = build(backend), build(backend)
    sum(vector.square().sum() for vector in trained(ids(1))).backward()  # type: ignore[union-attr]
    trained.step()
    assert not torch.equal(trained.weight("item"), fresh.weight("item"))
    fresh.load_state_dict(trained.state_dict())
    for collection in (trained, fresh):
        collection(ids(2)).square().sum().backward()
        collection.step()
    for field in trained.fields:
        assert torch.equal(trained.weight(field.name), fresh.weight(field.name))


def test_mistakes_are_told() -> None:
    collection = build("torch")
    with pytest.raises(ValueError, match=r"must have shape \[B, 3\], one column a field, got \[4, 2\]"):
        collection(torch.zeros((4, 2), dtype=torch.int64))
    same = [fields()[0], fields()[0]]
    spec = OptimizerSpec("sgd")
    with pytest.raises(ValueError, match=r"fields of different names, got \['user', 'user'\]"):
        build_collection(same, optimizer=spec, init_std=0.1, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="FBGEMM has no adam on the CPU"):
        build("torchrec", "adam")
