"""The life of semantic ids: frozen by a run, taken by the next one, which has items more and items less."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from tiny_experiment import recsys

from pipelines.cache import Cache
from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.config_semantic import MatrixFeatures, SemanticIds, TextFeatures
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.frozen_ids import CODES, FEATURES, TOKENISER, FrozenIds
from pipelines.frozen_settings import MANIFEST
from pipelines.item_features import FeatureTransform, fit_features
from pipelines.run_directory import open_dataset
from pipelines.stages.semantic import Tokenised, semantic_stage

ITEMS, NEW = 40, {"i40": "red wine 1", "i41": "grey wolf, blue sky", "i42": "blue sky 2"}
NAMES = ("red wine", "blue sky", "green tea", "grey wolf")
LOOSE = {"max_colliding": 1.0, "min_usage": 0.1, "min_entropy": 0.1, "max_error": 10.0, "max_prefix_share": 1.0}
CODED: dict[str, Any] = {
    "tokeniser": {"name": "rq_kmeans", "widths": [4, 8]},
    "collisions": "digit",
    "digit_width": 8,
    "gates": LOOSE | {"hierarchy": False},
}
CONFIG = """\
experiment: {name}
dataset:
  name: {name}
  source: {name}
  items: {{source: items.csv, id: item, title: title}}
  split: {{method: leave_last_n}}
semantic_ids: {codes}
evaluate: {{k: [1, 5], max_k: 8, bootstrap: 100, auc: false}}
model:
  {{name: tiger, dim: 16, layers: 1, heads: 2, head_dim: 8, inner: 32, max_items: 3, beam: 8, validation_users: 20}}
train: {{epochs: 2, batch_size: 96, eval_every_epochs: 1, selection: ndcg@5}}
tracking: {{enabled: false}}
variants:
  - {{name: popularity, model: {{name: popularity}}}}
  - {{name: tiger}}
"""


def write(directory: Path, name: str, titles: dict[str, str], codes: object) -> Path:
    """Users step through the items in their order."""
    (directory / name).mkdir()
    raw = list(titles)
    steps = [(user, step) for user in range(48) for step in range(7)]
    lines = [f"u{user},{raw[(user + step) % len(raw)]},{3600 * step}" for user, step in steps]
    (directory / name / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(lines) + "\n")
    items = [f'{item},"{title}"' for item, title in titles.items()]
    (directory / name / "items.csv").write_text("item,title\n" + "\n".join(items) + "\n")
    config = directory / f"{name}.yaml"
    config.write_text(CONFIG.format(name=name, codes=json.dumps(codes)))
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("frozen")
    old = {f"i{item}": f"{NAMES[item % 4]} {item // 4 % 3}" for item in range(ITEMS)}
    write(directory, "old", old, CODED)
    first = recsys(directory, "run", "old.yaml", "variants=[popularity]")
    assert first.returncode == 0, first.stderr
    write(directory, "new", old | NEW, {"codes": first.stdout.splitlines()[-1]})
    second = recsys(directory, "run", "new.yaml")
    assert second.returncode == 0, second.stderr
    assert "40 were frozen, 3 added" in second.stderr
    return directory / first.stdout.splitlines()[-1], directory / second.stdout.splitlines()[-1]


@pytest.fixture
def frozen(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run's frozen codes."""
    return Path(shutil.copytree(runs[0] / "semantic_ids", tmp_path / "frozen"))


def tokenised(run: Path, cache: Path, settings: object) -> Tokenised:
    return semantic_stage(Cache(cache), open_dataset(run), SemanticIds.model_validate(settings), 0)


def paths(ids: FrozenIds) -> dict[str, list[int]]:
    return dict(zip(ids.raw_ids, ids.codes.codes.tolist(), strict=True))


def frame(titles: dict[str, str]) -> pl.DataFrame:
    return pl.DataFrame({"raw_id": list(titles), "title": list(titles.values())})


def test_old_items_keep_their_codes_and_new_ones_have_theirs_by_content(runs: tuple[Path, Path]) -> None:
    first, second = (FrozenIds.load(run / "semantic_ids") for run in runs)
    before, after = paths(first), paths(second)
    assert len(before) == ITEMS and {raw: after[raw] for raw in before} == before
    assert list(after)[ITEMS:] == list(NEW) and second.codes.unique
    for new, twin in (("i40", "i4"), ("i42", "i9")):
        assert after[new][:2] == before[twin][:2]
    for name in (TOKENISER, FEATURES):
        assert (runs[0] / "semantic_ids" / name).read_bytes() == (runs[1] / "semantic_ids" / name).read_bytes()


def test_a_generator_trains_over_them_and_the_run_tells_what_was_added(runs: tuple[Path, Path]) -> None:
    run = runs[1]
    assert {variant["name"] for variant in json.loads((run / "metrics.json").read_bytes())["variants"]} == {
        "popularity",
        "tiger",
    }
    quality = json.loads((run / "semantic_ids.json").read_bytes())
    version = FrozenIds.load(runs[0] / "semantic_ids").codes.version
    assert quality["frozen"] == {"version": version, "kept": 40, "added": 3, "reserved": 0}
    assert quality["items"] == 43 and len(quality["levels"]) == 2 and quality["error"] < 1
    page = (run / "report.html").read_text()
    assert "Items added to them" in page and "the frozen and the added codes together" in page
    shown = recsys(run.parent.parent, "recommend", str(run), "--user", "u3", "--variant", "tiger", "--explain")
    assert shown.returncode == 0, shown.stderr


def test_the_resolved_configuration_has_nothing_but_the_codes(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = runs[1] / "config.yaml"
    assert list(yaml.safe_load(resolved.read_text())["semantic_ids"]) == ["codes"]
    monkeypatch.chdir(runs[1].parent.parent)
    assert load_experiment(str(resolved)).semantic_ids is not None


def test_the_features_of_any_items_are_the_bits_of_the_fit(runs: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = open_dataset(runs[0])
    fitted, vectors = fit_features(dataset, (TextFeatures(dim=5), TextFeatures(min_items=1)), 0)
    fitted.save(tmp_path / "f.safetensors")
    rows = [7, 3, 30]
    found = FeatureTransform.load(tmp_path / "f.safetensors").transform(dataset.items[rows])
    assert np.array_equal(found.view(np.uint32), vectors[rows].view(np.uint32))
    (tmp_path / "f.safetensors").write_bytes((tmp_path / "f.safetensors").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"f.safetensors holds no 'recsys item features 1' \(.*fit the features again"):
        FeatureTransform.load(tmp_path / "f.safetensors")
    FrozenIds.load(runs[0] / "semantic_ids").codes.save(tmp_path / "c.safetensors")
    with pytest.raises(DataError, match=r"c.safetensors holds no 'recsys item features 1'"):
        FeatureTransform.load(tmp_path / "c.safetensors")


def test_vectors_of_the_user_go_by_raw_id(runs: tuple[Path, Path], tmp_path: Path) -> None:
    dataset, later = (open_dataset(run) for run in runs)
    vectors = np.random.default_rng(0).standard_normal((43, 3)).astype(np.float32)
    known = pl.DataFrame({"raw_id": later.raw_item_ids(), "vector": vectors.tolist()})
    known.write_parquet(tmp_path / "v.parquet")
    np.save(tmp_path / "v.npy", vectors[:ITEMS])
    fitted, of_all = fit_features(dataset, (MatrixFeatures(source=str(tmp_path / "v.parquet")),), 0)
    np.testing.assert_array_equal(fitted.transform(dataset.items[5:9]), of_all[5:9])
    assert fitted.transform(later.items).shape == (43, 3) and fitted.takes_new_items
    ordered, _ = fit_features(dataset, (MatrixFeatures(source=str(tmp_path / "v.npy")),), 0)
    assert not ordered.takes_new_items
    with pytest.raises(DataError, match=r"v.npy has its rows in the order of one catalogue .*; use \.parquet with raw"):
        ordered.transform(later.items)


def test_codes_of_items_that_are_gone_stay_reserved(runs: tuple[Path, Path], frozen: Path, tmp_path: Path) -> None:
    ids = FrozenIds.load(frozen)
    twins = ids.codes.items(ids.codes.codes[ids.raw_ids.index("i4")][:2].tolist()).tolist()
    kept = [raw for raw in ids.raw_ids if raw != ids.raw_ids[twins[-1]]]
    longer = ids.extended(frame({"i99": "red wine 1"}))
    assert paths(longer)["i99"][2] == len(twins)
    assert longer.of([*kept, "i99"]).num_items == ITEMS
    taken = tokenised(runs[0], tmp_path / "cache", {"codes": str(runs[1])})
    assert taken.quality["frozen"] | {"version": ""} == {"version": "", "kept": 40, "added": 0, "reserved": 3}
    np.testing.assert_array_equal(taken.codes.codes, ids.codes.codes)
    assert set(FrozenIds.load(taken.frozen).raw_ids) == {*ids.raw_ids, *NEW}


def test_the_stage_knows_codes_by_their_content(runs: tuple[Path, Path], frozen: Path, tmp_path: Path) -> None:
    found = [tokenised(runs[1], tmp_path / "c", {"codes": str(place)}).directory for place in (runs[0], frozen)]
    assert found[0] == found[1]
    ids = FrozenIds.load(frozen)
    ids.save(frozen)
    assert tokenised(runs[1], tmp_path / "c", {"codes": str(frozen)}).directory == found[0]
    dataclasses.replace(ids, extends="another").save(frozen)
    assert tokenised(runs[1], tmp_path / "c", {"codes": str(frozen)}).directory != found[0]


def test_damage_is_told(frozen: Path) -> None:
    codes, manifest = frozen / CODES, frozen / MANIFEST
    whole = codes.read_bytes()
    codes.write_bytes(whole[:-4] + b"\x01\0\0\0")
    with pytest.raises(DataError, match=r"codes.safetensors is damaged \([0-9a-f]+, not [0-9a-f]+\); copy the folder"):
        FrozenIds.load(frozen)
    codes.unlink()
    with pytest.raises(DataError, match=r"codes.safetensors is damaged \(no file, not"):
        FrozenIds.load(frozen)
    codes.write_bytes(whole)
    facts = json.loads(manifest.read_bytes())
    for text, message in {
        "{": r"manifest.json is not JSON \(",
        "{}": "frozen holds no frozen semantic ids: its manifest.json must have the format 'recsys frozen",
        json.dumps(facts | {"settings": {"levels": 3}}): r"settings in .*manifest.json are not those of this version",
    }.items():
        manifest.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load(frozen.parent, {"codes": str(frozen)})


def load(directory: Path, codes: object) -> None:
    config = write(directory, f"data{len(list(directory.iterdir()))}", {"i1": "a", "i2": "b"}, codes)
    config.write_text(config.read_text().replace("source: data", f"source: {directory}/data"))
    load_experiment(str(config))


def test_settings_beside_frozen_codes_are_refused(frozen: Path, tmp_path: Path) -> None:
    for codes, message in (
        ({"codes": str(frozen), "collisions": "digit"}, "the settings that they were made with: remove collisions, or"),
        ({"codes": "nowhere"}, "'nowhere' is no run with semantic ids and no folder of them (there is no semantic_ids"),
        ({"digit_width": 3}, "digit_width is for collisions: digit, got keep; remove it"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(tmp_path, codes)
    keep = dataclasses.replace(FrozenIds.load(frozen), settings=SemanticIds())
    keep.save(frozen)
    with pytest.raises(ConfigError, match="tiger needs one code an item"):
        load(tmp_path, {"codes": str(frozen)})


def test_items_that_cannot_have_a_code_are_told(frozen: Path) -> None:
    ids = FrozenIds.load(frozen)
    for new, message in (
        ({"i40": "violet"}, "1 of 1 items have no content that the fitted features know, the first is 'i40'; give the"),
        ({f"i{n}": "red wine 1" for n in range(40, 50)}, r"no room for new item 'i4.': code \[.*\] has 8 item"),
    ):
        with pytest.raises(ValueError, match=message):
            ids.extended(frame(new))
    with pytest.raises(DataError, match="items have no text or list column 'title'"):
        ids.extended(frame({"i40": ""}).select("raw_id"))
    with pytest.raises(DataError, match="codes have none of these 1 items, the first is 'x' and theirs 'i0'; take"):
        ids.new_items(frame({"x": "red"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": [{"name": "spectral", "dim": 8}]}, "made from another training graph, which has no vectors of"),
        ({"tokeniser": {"name": "random", "widths": [8, 8]}}, "3 items have no frozen code, the first is 'i40', and"),
    ],
)
def test_codes_that_are_not_of_content_are_for_their_own_items(
    runs: tuple[Path, Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    made = tokenised(runs[0], tmp_path / "c", CODED | {"digit_width": 16} | settings)
    again = tokenised(runs[0], tmp_path / "c", {"codes": str(made.frozen)})
    assert again.codes.version == made.codes.version and again.quality["error"] is None
    with pytest.raises(DataError, match=f"semantic_ids with the frozen codes {made.codes.version}: .*{message}"):
        tokenised(runs[1], tmp_path / "c", {"codes": str(made.frozen)})
    codebook = FrozenIds.load(made.frozen).codebook
    if codebook is not None:
        with pytest.raises(DataError, match="features spectral are of the training graph, which has no vect"):
            codebook.features.transform(open_dataset(runs[1]).items)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokeniser": {"name": "rq_vae", "widths": [4, 4], "hidden": [8], "latent": 4, "epochs": 2}},
        {"tokeniser": {"name": "opq", "digits": 2, "width": 4, "passes": 1}, "features": [{"name": "text", "dim": 4}]},
        {"tokeniser": {"name": "rq_kmeans", "widths": [4, 32]}, "collisions": "reassign", "digit_width": None},
        {"collisions": "keep", "digit_width": None},
    ],
)
def test_every_codebook_takes_new_items(runs: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    wide = {"digit_width": 43}
    made = tokenised(runs[0], tmp_path / "c", CODED | wide | changes)
    later: Dataset = open_dataset(runs[1])
    found = tokenised(runs[1], tmp_path / "c", {"codes": str(made.frozen)})
    raw = later.raw_item_ids()
    old = [raw.index(item) for item in open_dataset(runs[0]).raw_item_ids()]
    np.testing.assert_array_equal(found.codes.codes[old], made.codes.codes)
    assert found.codes.unique == made.codes.unique
    assert (found.codes.codes[raw.index("i40"), :1] == found.codes.codes[raw.index("i4"), :1]).all()


def test_the_gates_look_at_old_and_new_items_together(runs: tuple[Path, Path], frozen: Path, tmp_path: Path) -> None:
    ids = FrozenIds.load(frozen)
    strict = SemanticIds.model_validate(CODED | {"gates": LOOSE | {"hierarchy": False, "max_colliding": 0.01}})
    dataclasses.replace(ids, settings=strict).save(frozen)
    with pytest.raises(
        DataError, match=r"with the frozen codes \w+: semantic codes fail 1 quality gate(.|\n)* of 43 items"
    ):
        tokenised(runs[1], tmp_path / "c", {"codes": str(frozen)})
