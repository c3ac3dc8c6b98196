from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embeddings.tables import OptimizerSpec
from recsys.models.graph_model import GraphModel
from recsys.models.lightgcn import LightGcn
from recsys.models.ngcf import Ngcf
from recsys.self_supervision import SelfSupervision, SslName, info_nce
from tests.recsys.graph_fixture import ITEMS, USERS, dense_adjacency, tables, toy

NAMES: list[SslName] = ["sgl", "simgcl", "xsimgcl"]
BATCH = np.array([0, 1, 1, 5]), np.array([3, 0, 4, 0, 6, 1])  # the last two items are negatives


def make_model(name: SslName, kind: str = "lightgcn", **parameters: float) -> GraphModel:
    users, items = tables(toy(), OptimizerSpec("sgd", lr=1.0))
    ssl = SelfSupervision(name, weight=0.5, **parameters)  # type: ignore[arg-type]
    if kind == "ngcf":
        model: GraphModel = Ngcf(users, items, layers=2, ssl=ssl, dropout=0.0, generator=np.random.default_rng(0))
    else:
        model = LightGcn(users, items, layers=2, ssl=ssl)
    model.use_graph(toy())
    return model


def test_info_nce_is_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    total = 0.0
    for i in range(5):
        terms = [math.exp(float(functional.cosine_similarity(first[i], second[j], dim=0)) / 0.3) for j in range(5)]
        total -= math.log(terms[i] / sum(terms))
    assert float(info_nce(first, second, 0.3)) == pytest.approx(total / 5, rel=1e-5)


def dense_term(first: Tensor, second: Tensor) -> Tensor:
    """0.5 x InfoNCE at 0.2 over the batch's distinct users and positive items."""
    users = torch.tensor([0, 1, 5])
    items = torch.tensor([0, 3, 4]) + USERS + 1
    return 0.5 * sum((info_nce(first[rows], second[rows], 0.2) for rows in (users, items)), torch.zeros(()))


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_the_term_and_its_gradient_are_those_of_the_dense_equation(name: SslName) -> None:
    """Noise 0 and dropout 0: SGL compares the mean of layers 0-2 with itself, SimGCL of 1-2, XSimGCL with layer 1."""
    model = make_model(name, noise=0.0, drop=0.0)
    found = model.look_up(*BATCH, 0, "select", 0, 0)
    assert found.extra_loss is not None
    value = found.extra_loss(found.extras)
    rows = [table.weight().clone().requires_grad_() for table in (model.users, model.items)]
    ego, adjacency = torch.cat(rows), dense_adjacency(toy())
    layers = [ego, adjacency @ ego, adjacency @ (adjacency @ ego)]
    mean = torch.stack(layers if name == "sgl" else layers[1:]).mean(0)
    expected = dense_term(mean, layers[1] if name == "xsimgcl" else mean)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(found.users.detach(), mean[torch.from_numpy(BATCH[0])].detach())
    before = [table.weight().clone() for table in (model.users, model.items)]
    value.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    model.step()
    for table, old, row in zip((model.users, model.items), before, rows, strict=True):
        assert row.grad is not None and row.grad.any()
        torch.testing.assert_close(old - table.weight(), row.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["lightgcn", "ngcf"])
@pytest.mark.parametrize("name", NAMES)
def test_views_differ_by_step_or_epoch_and_repeat_for_the_same_counters(kind: str, name: SslName) -> None:
    model = make_model(name, kind, noise=0.3, drop=0.4)

    def term(epoch: int, step: int, seed: int = 0) -> float:
        found = model.look_up(*BATCH, seed, "select", epoch, step)
        assert found.extra_loss is not None
        return float(found.extra_loss(found.extras).detach())

    first = term(0, 0)
    assert term(1, 0) != first and term(0, 0, seed=1) != first
    assert (term(0, 1) == first) == (name == "sgl"), "SGL draws its graphs once an epoch, the others noise each step"
    assert term(0, 0) == first


def test_noise_has_its_length_and_the_signs_of_the_vectors() -> None:
    (perturb,) = SelfSupervision("xsimgcl", noise=0.25).views(0, "select", 0, 0)
    assert perturb is not None
    vectors = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    noisy = perturb(1, (vectors, vectors))[0]
    torch.testing.assert_close((noisy - vectors).norm(dim=1), torch.full((50,), 0.25))
    assert ((noisy - vectors) * vectors >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_evaluated_vectors_have_no_noise(name: SslName) -> None:
    model, layers = make_model(name, noise=5.0, drop=0.9), [0, 1, 2] if name == "sgl" else [1, 2]
    ego, adjacency = torch.cat([model.users.weight(), model.items.weight()]), dense_adjacency(toy())
    powers = [ego, adjacency @ ego, adjacency @ adjacency @ ego]
    expected = torch.stack([powers[layer] for layer in layers]).mean(0)
    torch.testing.assert_close(model.user_vectors(np.arange(USERS)), expected[:USERS])
    torch.testing.assert_close(model.item_vectors(range(ITEMS)), expected[USERS + 1 : -1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0, noise >= 0 and 0 <= drop < 1, got 0.1, 0.0, 0.1 and 0.1"),
        ({"drop": 1.0}, "0 <= drop < 1, got 0.1, 0.2, 0.1 and 1.0"),
        ({"layer": 0}, "ssl.layer must be at least 1, got 0"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfSupervision("sgl", **parameters)  # type: ignore[arg-type]


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="ssl xsimgcl needs at least 3 layers, got 2"):
        make_model("xsimgcl", layer=3)
