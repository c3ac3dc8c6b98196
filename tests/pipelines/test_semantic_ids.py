"""Semantic ids from raw events to the report, and what unusable content is answered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from tiny_experiment import GROUPS, ITEMS, write_tiny

from embeddings.id_map import IdMap
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.compress import WIDTHS
from pipelines.cache import Cache
from pipelines.config_loader import load_experiment
from pipelines.config_semantic import (
    GRAPH_LEVELS,
    CollaborativeFeatures,
    MatrixFeatures,
    SemanticIds,
    SentenceFeatures,
    TextFeatures,
)
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.item_features import item_features
from pipelines.runner import run_experiment
from pipelines.stages.ingest import ingest_stage
from pipelines.stages.semantic import semantic_stage
from pipelines.text_features import tf_idf, vocabulary, words

SMALL: dict[str, Any] = {"tokeniser": {"name": "rq_kmeans", "widths": [4, 8]}, "gates": {"max_colliding": 1.0}}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    experiment = load_experiment(str(write_themed(tmp_path)))
    return ingest_stage(Cache(tmp_path / "cache"), experiment.dataset, lambda *_: None)


def write_themed(directory: Path) -> Path:
    """The tiny experiment with titles that tell an item's group, and events in an order."""
    config = write_tiny(directory)
    names = ["red wine", "blue sky", "green tea", "grey wolf"]
    events = (directory / "data" / "interactions.csv").read_text().split()
    ordered = ["user,item,time,pos", *(f"{pair},{row * 7 % 10},{row * 3 % 10}" for row, pair in enumerate(events[1:]))]
    (directory / "data" / "interactions.csv").write_text("\n".join(ordered) + "\n")
    columns = "columns: {user: user, item: item, timestamp: time, position: pos}\n  split: {method: user_ratio}"
    config.write_text(config.read_text().replace("  items: {", f"  {columns}\n  items: {{"))
    lines = ["item,title", *(f"i{item},{names[item % GROUPS]} {item // GROUPS % 3}" for item in range(ITEMS))]
    (directory / "data" / "items.csv").write_text("\n".join(lines) + "\n")
    return config


def stage(dataset: Dataset, tmp_path: Path, **changes: Any) -> SemanticCodes:
    settings = SemanticIds.model_validate(SMALL | changes)
    return semantic_stage(Cache(tmp_path / "cache"), dataset, settings, 0).codes


def groups(dataset: Dataset) -> np.ndarray:
    return np.array([int(raw[1:]) % GROUPS for raw in dataset.raw_item_ids()])


def test_tf_idf_is_that_of_scikit_learn() -> None:
    documents = [["a", "b", "b"], ["b", "c"], [], ["a", "c", "c", "c"], ["d"]]
    peer = TfidfVectorizer(analyzer=lambda words: words, min_df=2, sublinear_tf=True).fit_transform(documents)
    np.testing.assert_allclose(tf_idf(documents, *vocabulary(documents, 2)).toarray(), peer.toarray(), rtol=1e-6)


def test_words_of_text_and_lists() -> None:
    frame = pl.DataFrame({"raw_id": ["1", "2"], "title": ["Red Wine", None], "tags": [["Skin Care"], []], "n": [1, 2]})
    assert words(frame) == [["title=red wine", "red", "wine", "tags=skin care", "skin", "care"], []]
    assert words(frame, ("tags",)) == [["tags=skin care", "skin", "care"], []]
    with pytest.raises(DataError, match=r"items have no text or list column 'title2'; did you mean title\?"):
        words(frame, ("title2",))
    with pytest.raises(
        DataError, match=r"items have no text, category or list column; name them in dataset.items.feat"
    ):
        words(frame.select("raw_id", "n"))


def test_codes_of_text_tell_the_groups(dataset: Dataset, tmp_path: Path) -> None:
    codes = stage(dataset, tmp_path)
    first, group = codes.codes[:, 0], groups(dataset)
    assert sum(np.bincount(group[first == code]).max() for code in np.unique(first)) >= 0.7 * ITEMS


@pytest.mark.parametrize("kind", ["spectral", "fast_rp"])
def test_codes_of_the_graph_tell_the_groups(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    codes = stage(dataset, tmp_path, features=[{"name": kind, "dim": 8}], gates={"max_colliding": 1.0, "max_error": 1})
    first, group = codes.codes[:, 0], groups(dataset)
    assert sum(np.bincount(group[first == code]).max() for code in np.unique(first)) >= 0.7 * ITEMS


@pytest.mark.parametrize(
    "tokeniser",
    [
        {"name": "random", "widths": [8, 8]},
        {"name": "sequential", "width": 8},
        {"name": "collaborative", "clusters": 2, "largest": 10},
        {"name": "collaborative", "clusters": 2, "largest": 10, "hybrid": True},
        {"name": "category", "columns": ["title"]},
        {"name": "category", "columns": ["title"], "hybrid": True},
        {"name": "rq_kmeans", "widths": [4, 4], "balanced": True},
        {"name": "rq_vae", "widths": [4, 4], "hidden": [8], "latent": 4, "epochs": 20},
    ],
)
@pytest.mark.parametrize("collisions", ["digit", "keep"])
def test_every_tokeniser_makes_frozen_versioned_codes(
    dataset: Dataset, tmp_path: Path, tokeniser: dict[str, Any], collisions: str
) -> None:
    gates = {"max_colliding": 1.0, "max_error": 10.0, "min_usage": 0.1, "min_entropy": 0.1, "max_prefix_share": 1.0}
    changes = {"tokeniser": tokeniser, "collisions": collisions, "gates": gates | {"hierarchy": False}}
    codes = stage(dataset, tmp_path, **changes)
    assert codes.num_items == ITEMS
    assert codes.unique or (collisions == "keep" and tokeniser["name"].startswith("rq_"))
    assert stage(dataset, tmp_path, **changes).version == codes.version
    codes.require(codes.catalogue, ITEMS)


def test_sequential_ids_follow_train_only(dataset: Dataset, tmp_path: Path) -> None:
    codes = stage(dataset, tmp_path, tokeniser={"name": "sequential", "width": 64}).codes[:, 0]
    read = dataset.sequences("train")
    first = read.items[: read.offsets[1]]
    assert codes[first].tolist() == list(range(len(first)))
    assert sorted(first) != first.tolist()


def test_reassigned_codes_are_unique(dataset: Dataset, tmp_path: Path) -> None:
    tokeniser, loose = {"name": "rq_kmeans", "widths": [4, 32]}, {"max_colliding": 1.0, "min_usage": 0.1}
    codes = stage(dataset, tmp_path, tokeniser=tokeniser, gates=loose, collisions="reassign")
    assert codes.unique
    assert codes.levels == 2


def test_a_failed_gate_stops_and_says_what_to_change(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"semantic_ids: semantic codes fail 1 quality gate(.|\n)*max_colliding 0.01"):
        stage(dataset, tmp_path, gates={"max_colliding": 0.01})


def test_the_digits_of_opq_need_be_no_hierarchy_unless_asked(dataset: Dataset, tmp_path: Path) -> None:
    """The two items of a first digit are opposite in what the second one codes, which is the larger part."""
    item = np.arange(ITEMS)
    pair, opposite = item // 2, (-1.0) ** item
    circle = 2.6 * opposite * np.exp(1j * np.pi * (pair % 10) / 10)
    columns = [2 * (pair - pair.mean()) / pair.std(), circle.real, circle.imag, np.zeros(ITEMS)]
    np.save(tmp_path / "vectors.npy", np.column_stack(columns).astype(np.float32))
    features = [{"name": "matrix", "source": str(tmp_path / "vectors.npy")}]
    tokeniser = {"name": "opq", "digits": 2, "width": 20, "passes": 0}
    codes = stage(dataset, tmp_path, features=features, tokeniser=tokeniser, gates={})
    assert codes.unique and (codes.codes[::2, 0] == codes.codes[1::2, 0]).all()
    with pytest.raises(DataError, match="the codes are no hierarchy of these features"):
        stage(dataset, tmp_path, features=features, tokeniser=tokeniser, gates={"hierarchy": True})


def test_only_levels_with_an_order_are_checked_for_a_hierarchy_by_default() -> None:
    ordered = {
        tokeniser: SemanticIds.model_validate({"tokeniser": {"name": tokeniser}})
        for tokeniser in ("rq_kmeans", "rq_vae", "opq")
    }
    assert {name: settings.is_hierarchy for name, settings in ordered.items()} == {
        "rq_kmeans": True,
        "rq_vae": True,
        "opq": False,
    }
    assert not SemanticIds.model_validate({"gates": {"hierarchy": False}}).is_hierarchy


def test_fewer_items_than_codes(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="semantic_ids: k-means of 256 clusters needs as many points, got 40; use narrow"
    ):
        stage(dataset, tmp_path, tokeniser={"name": "rq_kmeans"})


def test_items_without_content(dataset: Dataset, tmp_path: Path) -> None:
    blank = dataset.items.with_columns(title=pl.when(pl.col("raw_id") == "i7").then(pl.lit("")).otherwise("title"))
    dataset.__dict__["items"] = blank
    with pytest.raises(DataError, match=r"1 of 40 items have no content, the first is 'i7'; name more columns or add"):
        item_features(dataset, (TextFeatures(),), 0)
    shared = item_features(dataset, (TextFeatures(),), 0, share_empty=True)
    assert np.isfinite(shared).all()
    both = item_features(dataset, (TextFeatures(), CollaborativeFeatures(dim=8)), 0)
    spread = [np.square(part).sum() / ITEMS for part in (both[:, :-8], both[:, -8:])]
    np.testing.assert_allclose(spread, 1, rtol=1e-4)
    with pytest.raises(DataError, match="no word occurs in 41 items or more; lower min_items"):
        item_features(dataset, (TextFeatures(min_items=41),), 0)


def test_matrices_of_the_user(dataset: Dataset, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((ITEMS, 3)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    frame = pl.DataFrame({"raw_id": dataset.raw_item_ids(), "vector": vectors.tolist()})
    frame.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(tmp_path / "v.parquet")
    frame.with_columns(pl.col("vector").cast(pl.Array(pl.Float64, 3))).write_parquet(tmp_path / "array.parquet")
    names = ("v.npy", "v.parquet", "array.parquet")
    found = [item_features(dataset, (MatrixFeatures(source=str(tmp_path / name)),), 0) for name in names]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_matrices_that_do_not_fit(dataset: Dataset, tmp_path: Path) -> None:
    ids = dataset.raw_item_ids()
    frame = pl.DataFrame({"raw_id": ids, "vector": [[0.5, 1.0]] * ITEMS})
    np.save(tmp_path / "short.npy", np.zeros((3, 2), dtype=np.float32))
    np.save(tmp_path / "nan.npy", np.full((ITEMS, 2), np.nan, dtype=np.float32))
    (tmp_path / "text.npy").write_text("hello")
    frame.head(30).write_parquet(tmp_path / "few.parquet")
    frame.rename({"vector": "v"}).write_parquet(tmp_path / "named.parquet")
    frame.with_columns(vector=pl.when(pl.col("raw_id") == "i3").then([1.0]).otherwise("vector")).write_parquet(
        tmp_path / "ragged.parquet"
    )
    frame.with_columns(vector=pl.lit(["0.5", "1"])).write_parquet(tmp_path / "words.parquet")
    frame.with_columns(vector=pl.lit(0.5)).write_parquet(tmp_path / "scalar.parquet")
    for name, message in {
        "absent.npy": r"semantic_ids.features.source '.*absent.npy' is no file",
        "short.npy": r"short.npy must be float \[40, D\], a row for each item in index order .*, got float32 \[3, 2\]",
        "nan.npy": r"nan.npy: the vector of item 'i0' is not finite",
        "text.npy": r"text.npy is not a .npy file of numbers",
        "few.parquet": r"few.parquet has no vector for 10 of 40 items, the first is 'i",
        "named.parquet": r"named.parquet must be Parquet with columns raw_id and vector",
        "words.parquet": r"words.parquet: vector must be a list of numbers for each item, got List\(String\)",
        "scalar.parquet": r"scalar.parquet: vector must be a list of numbers for each item, got Float64",
        "ragged.parquet": r"ragged.parquet: vectors must have one length, got \[1, 2\]",
    }.items():
        with pytest.raises(DataError, match=message):
            item_features(dataset, (MatrixFeatures(source=str(tmp_path / name)),), 0)


def test_the_levels_that_validation_counts_are_those_of_codes(dataset: Dataset, tmp_path: Path) -> None:
    assert len(WIDTHS) == GRAPH_LEVELS
    for collisions in ("keep", "digit"):
        settings = SemanticIds.model_validate(SMALL | {"collisions": collisions})
        assert stage(dataset, tmp_path, collisions=collisions).levels == settings.levels


def test_what_is_not_there_is_told(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"items have no column 'genre' for category ids \(there are \['raw_id', 'title"
    ):
        stage(dataset, tmp_path, tokeniser={"name": "category", "columns": ["genre"]})
    with pytest.raises(DataError, match="features sentence_transformers need the package of that name: pip install"):
        item_features(dataset, (SentenceFeatures(),), 0)


def test_a_run_with_semantic_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    config = write_themed(tmp_path)
    text = config.read_text().replace("{name: modulo}", "{name: semantic_ngram, semantic: {users: graphhash}}")
    text += "  - {name: mf-spm, compressor: {name: semantic_spm}}\n"
    config.write_text(text + f"semantic_ids: {json.dumps(SMALL)}\n")
    names = "variants=[mf-graphhash, mf-modulo, mf-spm]"
    run = run_experiment(load_experiment(str(config), [names, "train.epochs=2", f"output={tmp_path}"]), quiet=True)
    quality = json.loads((run / "semantic_ids.json").read_text())
    assert [level["width"] for level in quality["levels"]] == [4, 8]
    audit = {check["name"]: check for check in json.loads((run / "dataset.json").read_text())["leak_audit"]}
    assert audit["semantic ids"]["passed"] is True
    maps = {n: run / "variants" / f"mf-{n}-s0" / "checkpoint" for n in ("graphhash", "modulo", "spm")}
    users = [IdMap.load(directory / "user_map.safetensors").rows for directory in maps.values()]
    assert np.array_equal(users[0], users[1])
    assert not np.array_equal(users[0], users[2])
    item_map = IdMap.load(maps["modulo"] / "item_map.safetensors")
    assert item_map.info["codes"] == quality["version"]
    rows = {IdMap.load(directory / "item_map.safetensors").num_rows for directory in maps.values()}
    assert len(rows) == 1, "equal bytes"
    page = (run / "report.html").read_text()
    assert "Semantic ids" in page
    assert quality["version"] in page
