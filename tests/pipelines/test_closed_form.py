"""Models without epochs: every one of them in a run, and a grid that is decided on validation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.sparse import csr_array
from tiny_experiment import recsys, write_tiny

from pipelines.config import Train
from pipelines.config_models import ItemKnn, Slim
from pipelines.stages import closed_form
from recsys.evaluator import quick_metrics
from recsys.models import item_knn

VARIANTS = """\
variants:
  - {name: popularity, model: {name: popularity}}
  - {name: ease, model: {name: ease, grid: {l2: [1, 1000000]}}}
  - {name: slim, model: {name: slim, l1: 0.5, l2: 2}}
  - {name: gf-cf, model: {name: gf_cf, rank: 4}}
  - {name: cheby-cf, model: {name: cheby_cf, rank: 4}}
  - {name: bspm, model: {name: bspm, rank: 4}}
  - {name: ials, model: {name: ials, dim: 4, iterations: 4, grid: {dim: [2, 4], regularization: [0.01, 1000.0]}}}
"""


def matrices() -> tuple[csr_array, csr_array, csr_array]:
    """Train, valid and their union of users that like items of their own parity."""
    likes = np.add.outer(np.arange(40), np.arange(30)) % 2 == 0
    draw = np.random.default_rng(0).random(likes.shape)
    train, valid = likes & (draw < 0.4), likes & (draw >= 0.4) & (draw < 0.6)
    train, valid, union = (csr_array(m.astype(np.float32)) for m in (train, valid, train | valid))
    return train, valid, union


def test_a_run_has_every_model_and_what_its_grid_chose(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    config.write_text(config.read_text().split("variants:")[0] + VARIANTS)
    done = recsys(tmp_path, "run", str(config))
    assert done.returncode == 0, done.stderr
    run = tmp_path / done.stdout.splitlines()[-1]
    found = {row["name"]: row for row in json.loads((run / "metrics.json").read_text())["variants"]}
    assert set(found) == {"popularity", "ease", "slim", "gf-cf", "cheby-cf", "bspm", "ials"}
    popular = found["popularity"]["metrics"]["test/recall@20"]
    assert all(row["metrics"]["test/recall@20"] > popular for name, row in found.items() if name != "popularity")
    chosen = json.loads((run / "variants" / "ease-s0" / "checkpoint" / "selection.json").read_text())
    assert [point["parameters"]["l2"] for point in chosen["tried"]] == [1, 1000000]
    assert found["ease"]["metrics"]["valid/recall@20"] == max(point["recall@20"] for point in chosen["tried"])
    assert chosen["on"] == "valid"
    factors = json.loads((run / "variants" / "ials-s0" / "checkpoint" / "selection.json").read_text())
    assert len(factors["tried"]) == 4 and factors["parameters"]["regularization"] == 0.01
    assert "grid of ease-s0: 2/2" in (run / "log.txt").read_text()


def test_the_best_point_on_validation_is_fitted_again_on_all() -> None:
    train, valid, union = matrices()
    config = ItemKnn(grid={"neighbours": (1, 5), "shrinkage": (0.0, 20.0)})
    told: list[tuple[int, int]] = []
    settings = Train(selection="recall@5")
    model, phases, chosen = closed_form.train(config, settings, (train, valid, union), 0, lambda *of: told.append(of))
    assert told == [(point, 4) for point in range(5)]
    points = [(n, s) for n in (1, 5) for s in (0.0, 20.0)]
    values = [
        quick_metrics(item_knn.ItemKnn.fit(train, n, s), valid, train, ["recall@5"])["recall@5"] for n, s in points
    ]
    best = points[int(np.argmax(values))]
    assert chosen is not None and tuple(chosen["parameters"].values()) == best
    expected = item_knn.ItemKnn.fit(union, *best).scores(np.arange(40))
    np.testing.assert_array_equal(model.scores(np.arange(40)), expected)
    assert phases["select"] is train and phases["refit"] is union


def test_a_grid_needs_something_to_choose_by() -> None:
    train, valid, union = matrices()
    nothing = csr_array(valid.shape, dtype=np.float32)
    config = Slim(grid={"l2": (1.0, 2.0)})

    def unheard(_done: int, _all: int) -> None:
        raise AssertionError("nothing is searched")

    with pytest.raises(ValueError, match="grid of model slim needs interactions in valid to choose by, got none; give"):
        closed_form.train(config, Train(), (train, nothing, union), 0, unheard)
    assert closed_form.train(Slim(), Train(), (train, nothing, union), 0, unheard)[2] is None


def test_mistakes_of_a_grid_are_told() -> None:
    with pytest.raises(ValidationError, match="grid has 'l3', must be one of l1, l2"):
        Slim(grid={"l3": (1.0,)})
    with pytest.raises(ValidationError, match=r"grid.l2 has no value to try; give some, or remove it"):
        Slim(grid={"l2": ()})
    with pytest.raises(ValidationError, match="greater than 0"):
        Slim(grid={"l1": (1.0, 0.0)})
