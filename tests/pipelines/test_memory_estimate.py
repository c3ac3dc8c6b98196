"""The memory estimate counts what the source says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_experiment import write_tiny

from pipelines.config import Dataset
from pipelines.config_loader import load_experiment
from pipelines.config_models import (
    Bspm,
    ChebyCf,
    Ease,
    GfCf,
    Ials,
    ItemKnn,
    LightGcn,
    Mf,
    Model,
    Ngcf,
    Popularity,
    Slim,
)
from pipelines.config_rpg import Rpg
from pipelines.config_semantic import CategoryIds, Opq, RqKmeans, SemanticIds, SequentialIds, Tokeniser
from pipelines.config_tiger import Dense, Tiger
from pipelines.memory import Size, compressed_rows, estimate, measure, memory_lines, total
from pipelines.memory_models import code_widths, fitting_mib


def test_parquet_is_counted_exactly() -> None:
    assert measure(Dataset(name="anime", source="sample:anime")) == Size(520_609, 5_000, 7_390, exact=True)


def test_text_is_extrapolated_from_its_first_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id\n" + "1000000,2000000\n" * 200_000)
    found = measure(Dataset(name="x", source=str(path)))
    assert not found.exact
    assert abs(found.rows - 200_000) < 2_000


def test_more_dimensions_and_optimizer_state_need_more(tmp_path: Path) -> None:
    path = str(write_tiny(tmp_path))
    size = Size(10_000_000, 1_000_000, 100_000, exact=True)
    parts = {
        name: total(estimate(load_experiment(path, overrides), size))
        for name, overrides in {
            "base": ["model.dim=64", "model.optimizer.name=sgd"],
            "adam": ["model.dim=64", "model.optimizer.name=adam"],
            "wide": ["model.dim=256", "model.optimizer.name=sgd"],
        }.items()
    }
    assert parts["adam"] > parts["base"]
    assert parts["wide"] > parts["adam"]


def test_rows_of_the_budget_and_a_warning_when_memory_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(str(write_tiny(tmp_path)))
    assert compressed_rows(experiment, Size(500, 60, 40, exact=True)) == {"40%": (40, 100)}
    assert len(memory_lines(experiment)) == 1
    monkeypatch.setattr("pipelines.memory.LIBRARIES_MIB", 1e9)
    assert memory_lines(experiment)[1].startswith("warning: this is more than the machine has free")


def fitting(model: Model | Tiger | Rpg, items: int = 40_000, widths: tuple[int, ...] = (256,) * 4) -> float:
    return fitting_mib(model, rows=1_000_000, users=30_000, items=items, widths=widths)


def test_every_model_is_estimated_by_what_it_allocates() -> None:
    """Gowalla's size: three dense matrices, six of rank + 64 columns, or vectors of every node and layer."""
    assert fitting(Ease(method="dense")) == pytest.approx(3 * 4 * 40_000**2 / 2**20)
    assert fitting(Ease()) == fitting(GfCf(rank=512))
    assert fitting(Ease(), items=2_000) == pytest.approx(3 * 4 * 2_000**2 / 2**20)
    assert fitting(ChebyCf(rank=936)) == pytest.approx((6 * 4 * 40_000 * 1000 + 16e6) / 2**20)
    assert fitting(Bspm(rank=256)) == fitting(GfCf(rank=256)) < fitting(GfCf(rank=512))
    assert fitting(LightGcn(layers=3)) - fitting(Mf()) == pytest.approx((70_000 * 64 * 4 * 10 + 16e6) / 2**20)
    assert fitting(Ngcf(layers=2)) == fitting(LightGcn(layers=2))
    small = [fitting(model) for model in (Popularity(), ItemKnn(), Slim(), Ials())]
    assert all(0 < value < 200 for value in small)


def test_closed_form_models_count_in_the_estimate_of_an_experiment(tmp_path: Path) -> None:
    path, size = str(write_tiny(tmp_path)), Size(1_000_000, 30_000, 40_000, exact=True)
    overrides = ["variants=[popularity]", "variants.popularity.model={name: ease, method: dense}"]
    assert estimate(load_experiment(path, overrides), size)["train"] > 18_000
    assert estimate(load_experiment(path, ["variants=[popularity]"]), size)["train"] < 100


def test_a_dense_head_takes_content_its_projection_and_the_cosines_of_a_step() -> None:
    """40,000 items: 128 numbers of content, 64 of the projection and 256 cosines, thrice."""
    more = fitting(Tiger(dim=64, dense=Dense())) - fitting(Tiger(dim=64))
    assert more == pytest.approx(40_000 * 3 * (128 + 64 + 256) * 4 / 2**20)


def test_long_ids_take_tokens_and_heads_by_digit_and_codes_by_item() -> None:
    tokens, heads, codes = (16 * 128 + 64) * 64, 17 * 64 * 64, 2 * 40_000 * 17
    found = fitting(Rpg(dim=64), widths=(128,) * 16 + (64,))
    assert found == pytest.approx((9 * (tokens + heads) + codes) * 4 / 2**20)


def test_a_generator_keeps_more_of_a_step_for_longer_paths() -> None:
    four, eight, twelve = (fitting(Tiger(), widths=(256,) * levels) for levels in (4, 8, 12))
    assert twelve - eight == pytest.approx(eight - four) and eight > four


@pytest.mark.parametrize(
    ("tokeniser", "widths"),
    [
        (Opq(digits=32, width=128), (128,) * 32),
        (RqKmeans(widths=(64, 32)), (64, 32)),
        (SequentialIds(width=10), (10,) * 5),
        (CategoryIds(columns=("kind",)), (256,) * 4),
    ],
)
def test_codes_have_the_levels_of_their_tokeniser(tokeniser: Tokeniser, widths: tuple[int, ...]) -> None:
    assert code_widths(SemanticIds(tokeniser=tokeniser), 40_000) == widths
    assert code_widths(SemanticIds(tokeniser=tokeniser, collisions="digit"), 40_000) == (*widths, 256)


@pytest.mark.usefixtures("shared_data")
def test_the_estimate_of_an_experiment_follows_its_codes() -> None:
    size = Size(200_000, 22_000, 12_000, exact=True)
    long, short = (
        estimate(load_experiment("rpg_beauty", ["variants=[rpg]", f"semantic_ids.tokeniser.digits={digits}"]), size)
        for digits in (32, 16)
    )
    weights, codes = 16 * 128 * (256 + 128), 16 * 12_000
    assert long["train"] - short["train"] == pytest.approx((9 * weights + 2 * codes) * 4 / 2**20)
