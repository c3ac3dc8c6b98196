"""Each ranker against a dense numpy implementation of its paper's equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from recsys.event_batch import Events
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.dcn_v2 import Cross, CrossLayers, DcnV2
from recsys.rankers.dlrm import Dlrm
from recsys.rankers.factorisation import DeepFm
from recsys.rankers.final_mlp import FinalMlp, Streams
from recsys.rankers.ranker import Dropout, Ranker, Tower

SIZES = {"user": 6, "item": 5, "place": 3}
DIM, NUM_DENSE = 4, 2
Array = np.ndarray[Any, Any]


def ranker(spec: RankerSpec, dims: tuple[int, ...] = (DIM,) * 3, num_dense: int = NUM_DENSE) -> Ranker:
    """Of the first fields, as many as have a dimension."""
    fields = [
        Field(name, IdMap(np.arange(size)[:, None], size + 1, size, "full"), dim)
        for (name, size), dim in zip(SIZES.items(), dims, strict=False)
    ]
    tables = build_collection(
        fields, optimizer=OptimizerSpec("adagrad"), init_std=0.7, generator=np.random.default_rng(1)
    )
    return build_ranker(spec, tables, num_dense, seed=3)


def events(count: int = 9, num_dense: int = NUM_DENSE) -> Events:
    rng = np.random.default_rng(4)
    ids = np.stack([rng.integers(0, size + 1, count) for size in SIZES.values()], 1).astype(np.int32)
    dense = rng.standard_normal((count, num_dense)).astype(np.float32)
    return Events(ids, dense, rng.integers(0, 2, count).astype(np.uint8), tuple(SIZES))


def vectors(model: Ranker, data: Events) -> list[Array]:
    """What each field's full table gives; its last row is that of unseen ids."""
    weights = [model.tables.weight(name).numpy() for name in SIZES]
    return [weight[data.ids[:, place]].astype(np.float64) for place, weight in enumerate(weights)]


def apply(layer: nn.Module, x: Array) -> Array:
    assert isinstance(layer, nn.Linear)
    bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
    return x @ layer.weight.detach().numpy().T.astype(np.float64) + bias


def mlp(layers: nn.Module, x: Array) -> Array:
    for layer in layers.children():
        x = apply(layer, x) if isinstance(layer, nn.Linear) else np.maximum(x, 0)
    return x


def flat(model: Ranker, data: Events) -> Array:
    return np.concatenate([*vectors(model, data), data.dense], 1)


TOWER = Tower((7, 5))


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcn_v2_is_equation_1(structure: Any) -> None:
    model = ranker(RankerSpec("dcn_v2", TOWER, Cross(2, structure)), dims=(4, 2, 3))
    assert isinstance(model, DcnV2)
    data = events()
    first = x = flat(model, data)
    for layer in model.cross:
        x = first * apply(layer, x) + x  # type: ignore[arg-type]
    x = mlp(model.tower, x) if structure == "stacked" else np.concatenate([x, mlp(model.tower, first)], 1)
    np.testing.assert_allclose(model.scores(data), apply(model.head, x)[:, 0], rtol=1e-4, atol=1e-5)


def test_the_cross_layers_have_the_gradients_of_autograd() -> None:
    torch.manual_seed(0)
    layers = CrossLayers(6, Cross(3)).double()
    first = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda first, *_: layers(first), (first, *layers.parameters()))


def test_dcn_v2_mixes_low_rank_experts_as_equation_4() -> None:
    model = ranker(RankerSpec("dcn_v2", TOWER, Cross(1, "stacked", rank=3, experts=2)))
    assert isinstance(model, DcnV2)
    layer: Any = model.cross[0]
    layer.bias.data.normal_(generator=torch.Generator().manual_seed(0))
    data = events()
    x = flat(model, data)
    gate = np.exp(apply(layer.gate, x))
    gate /= gate.sum(1, keepdims=True)
    mixed = x.copy()
    for i in range(2):
        low = np.tanh(apply(layer.middle[i], np.tanh(apply(layer.down[i], x))))
        mixed += gate[:, [i]] * x * (apply(layer.up[i], low) + layer.bias.detach().numpy())
    expected = apply(model.head, mlp(model.tower, mixed))[:, 0]
    np.testing.assert_allclose(model.scores(data), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wide_deep", "deep_fm"])
def test_first_order_pairs_and_tower(name: Any) -> None:
    model: Any = ranker(RankerSpec(name, TOWER))
    data = events()
    whole = vectors(model, data)
    factors = [vector[:, 1:] for vector in whole]
    expected = sum(vector[:, 0] for vector in whole) + apply(model.wide, data.dense)[:, 0]
    expected += mlp(model.tower, np.concatenate([*factors, data.dense], 1))[:, 0]
    if name == "deep_fm":
        expected += sum((factors[i] * factors[j]).sum(1) for i in range(3) for j in range(i))
    np.testing.assert_allclose(model.scores(data), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_dense", [0, 2])
def test_dlrm_multiplies_all_pairs_of_fields(num_dense: int) -> None:
    model = ranker(RankerSpec("dlrm", TOWER, bottom=(6,)), num_dense=num_dense)
    assert isinstance(model, Dlrm)
    data = events(num_dense=num_dense)
    numbers = [] if model.bottom is None else [mlp(model.bottom, data.dense)]
    parts = [*numbers, *vectors(model, data)]
    products = [(parts[i] * parts[j]).sum(1) for i in range(len(parts)) for j in range(i + 1, len(parts))]
    expected = mlp(model.top, np.concatenate([*numbers, np.stack(products, 1)], 1))[:, 0]
    np.testing.assert_allclose(model.scores(data), expected, rtol=1e-4, atol=1e-5)


def test_dlrm_of_one_field_multiplies_it_by_the_numbers() -> None:
    model, data = ranker(RankerSpec("dlrm", TOWER, bottom=(6,)), dims=(DIM,)), events()
    assert isinstance(model, Dlrm) and model.bottom is not None
    data = Events(data.ids[:, :1], data.dense, data.labels, data.fields[:1])
    numbers, user = mlp(model.bottom, data.dense), model.tables.weight("user").numpy()[data.ids[:, 0]]
    expected = mlp(model.top, np.concatenate([numbers, (numbers * user).sum(1, keepdims=True)], 1))[:, 0]
    np.testing.assert_allclose(model.scores(data), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Dlrm multiplies pairs of fields, got user alone; add a field or a number"):
        ranker(RankerSpec("dlrm"), dims=(DIM,), num_dense=0)


@pytest.mark.parametrize("gates", [None, ((), ("item", "place"))])
def test_final_mlp_fuses_two_gated_towers(gates: Any) -> None:
    spec = RankerSpec("final_mlp", Tower((6, 4)), streams=Streams(Tower((8,)), heads=2, gates=gates, gate_hidden=(5,)))
    model: Any = ranker(spec)
    assert isinstance(model, FinalMlp)
    data = events()
    x, parts = flat(model, data), vectors(model, data)
    inputs = [x, x]
    if gates is not None:
        contexts = [np.zeros((len(x), DIM)), np.concatenate(parts[1:], 1)]
        inputs = [
            x * 2 / (1 + np.exp(-mlp(gate.layers, c)))  # type: ignore[arg-type]
            for gate, c in zip(model.gates, contexts, strict=True)
        ]
    one, two = mlp(model.first, inputs[0]), mlp(model.second, inputs[1])
    expected = apply(model.linear_one, one)[:, 0] + apply(model.linear_two, two)[:, 0]
    for head, block in enumerate(model.bilinear.detach().numpy()):
        left, right = one[:, 2 * head : 2 * head + 2], two[:, 4 * head : 4 * head + 4]
        expected += np.einsum("bi,ij,bj->b", left, block, right)
    np.testing.assert_allclose(model.scores(data), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dcn_v2", "dlrm", "deep_fm", "wide_deep", "final_mlp"])
def test_a_score_depends_on_its_event_alone_and_unseen_ids_share_a_row(name: Any) -> None:
    model = ranker(RankerSpec(name, Tower((6,), dropout=0.5, batch_norm=True)))
    data = events(20)
    scores = model.scores(data)
    alone = [model.scores(Events(data.ids[[i]], data.dense[[i]], data.labels[[i]], data.fields))[0] for i in range(20)]
    np.testing.assert_allclose(scores, alone, rtol=1e-5, atol=1e-6)
    far, near = data.ids.copy(), data.ids.copy()
    far[:, 1], near[:, 1] = 1_000_000, SIZES["item"]
    unseen = [model.scores(Events(ids, data.dense, data.labels, data.fields)) for ids in (far, near)]
    assert np.array_equal(*unseen)


def test_dropout_comes_from_its_generator_and_keeps_the_mean() -> None:
    noise = torch.Generator()
    layer = Dropout(0.25, noise)
    values = torch.ones(20_000)
    masks = [layer(values) for _ in (noise.manual_seed(5), noise.manual_seed(5))]
    noise.manual_seed(6)
    assert masks[0].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert not torch.equal(layer(values), masks[0])
    noise.manual_seed(5)
    assert torch.equal(layer(values), masks[0])
    assert float(masks[0].mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(values), values)


def test_same_seed_same_layers() -> None:
    spec = RankerSpec("dcn_v2", TOWER)
    one, two = ranker(spec), ranker(spec)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match=r"DeepFm multiplies fields and needs one dim .*'item': 2"):
        ranker(RankerSpec("deep_fm"), dims=(4, 2, 4))
    with pytest.raises(ValueError, match=r"WideDeep needs dim >= 2.* but item has dim 1"):
        ranker(RankerSpec("wide_deep"), dims=(4, 1, 4))
    with pytest.raises(ValueError, match=r"1 <= rank <= 14 .*got rank 99 and 4 experts"):
        ranker(RankerSpec("dcn_v2", cross=Cross(rank=99)))
    with pytest.raises(ValueError, match="heads must divide the towers' last widths 400 and 400, got 3"):
        ranker(RankerSpec("final_mlp", streams=Streams(heads=3)))
    with pytest.raises(ValueError, match="a gate names the field 'town'; the fields are user, item, place"):
        ranker(RankerSpec("final_mlp", streams=Streams(gates=((), ("town",)))))
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        ranker(RankerSpec("dcn_v2", Tower((4,), dropout=1.0)))
    with pytest.raises(ValueError, match="the ranker takes 2 numeric fields, got 0"):
        ranker(RankerSpec("dcn_v2", TOWER)).scores(events(num_dense=0))
    assert isinstance(ranker(RankerSpec("deep_fm", TOWER)), DeepFm)


@pytest.mark.parametrize("name", ["dcn_v2", "dlrm", "deep_fm", "wide_deep", "final_mlp"])
def test_no_events_have_no_scores(name: str) -> None:
    model = ranker(RankerSpec(name))  # type: ignore[arg-type]
    batch = events().batch(slice(0, 0))
    assert model.eval().logits(batch).shape == (0,)
