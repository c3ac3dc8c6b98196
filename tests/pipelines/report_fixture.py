"""A realistic synthetic run directory and its dataset: planted preferences, models that see them through noise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_array

from pipelines.config import Compressor, Experiment, Variant
from pipelines.config import Dataset as DatasetConfig
from pipelines.config_models import ItemKnn, Mf, Popularity
from pipelines.dataset import SPLITS, Dataset, Manifest
from pipelines.run_files import Compression, DatasetFacts, Epoch, EvaluationSummary, Metrics, RunFiles, VariantResult
from pipelines.run_schema import WorstBucket
from recsys.evaluator import evaluate
from recsys.rng import generator

HOSTILE_TITLES = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</style><img src=x onerror=alert(3)>",
    "\"quoted\" & 'single' onmouseover='alert(4)'",
    "<!-- comment --><svg onload=alert(5)>",
    "مرحبا بالعالم \u202eevil.exe",
    "🎬🍿 emoji 👩‍👩‍👧‍👦",
    "long " * 60,
    '=HYPERLINK("http://evil.example/","x")',
    "line\u2028separator\u2029 and \\u003c backslash",
    "{{ 7 * 7 }} {% raw %}",
    "javascript:alert(6)",
)
NUM_USERS, NUM_ITEMS = 500, 320


@dataclasses.dataclass(frozen=True)
class Planted:
    """A variant of the fixture; ``noise`` hides the truth (0 = perfect), ``rows`` and ``dim`` give the bytes.

    ``valid`` is its recall@20 on validation, whatever test says.
    """

    name: str
    model: str
    compressor: str | None
    noise: float
    rows: int = 0
    valid: float | None = None


DEFAULT = (
    Planted("popularity", "popularity", None, 3.0),
    Planted("item-knn", "item_knn", None, 1.0),
    Planted("full", "mf", "full", 0.35, 820),
    Planted("graphhash", "mf", "graphhash", 0.8, 133),
    Planted("double-graphhash", "mf", "double_graphhash", 0.7, 133),
    Planted("modulo", "mf", "modulo", 2.2, 133),
    Planted("frequency", "mf", "frequency", 1.5, 133),
)


class NoisyTruth:
    """A retriever whose scores are the planted preferences plus noise."""

    def __init__(self, truth: np.ndarray, noise: float, seed: int, name: str) -> None:
        self.num_users, self.num_items = truth.shape
        hidden = generator(seed, "fixture", name).normal(size=truth.shape)
        self._scores = torch.from_numpy((truth + noise * truth.std() * hidden).astype(np.float32))

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return self._scores[torch.from_numpy(users)]


def truth() -> np.ndarray:
    rng = generator(0, "fixture", "truth")
    users, items = rng.normal(size=(NUM_USERS, 6)), rng.normal(size=(NUM_ITEMS, 6))
    return users @ items.T / 2.4 + rng.normal(size=NUM_ITEMS)


def write_dataset(directory: Path, *, timestamps: bool = True, leak: bool = False) -> Dataset:
    """Write a dataset with hostile titles among its most popular items and open it."""
    rng, utility = generator(0, "fixture", "events"), truth()
    noisy = utility + rng.gumbel(size=utility.shape)
    lengths = rng.integers(12, 60, NUM_USERS)
    rows = []
    for user, length in enumerate(lengths):
        items = np.argsort(-noisy[user])[:length]
        split = rng.choice(3, size=length, p=[0.7, 0.1, 0.2])
        split[:2] = (0, 2)
        rows += [
            (user, int(item), int(part), 1_600_000_000 + i)
            for i, (item, part) in enumerate(zip(items, split, strict=True))
        ]
    frame = pl.DataFrame(
        rows, schema={"user": pl.Int32, "item": pl.Int32, "split": pl.UInt8, "timestamp": pl.Int64}, orient="row"
    )
    if not timestamps:
        frame = frame.drop("timestamp")
    directory.mkdir(parents=True, exist_ok=True)
    frame.sort("user", "item").write_parquet(directory / "interactions.parquet")
    popular = np.argsort(-np.bincount(frame["item"].to_numpy(), minlength=NUM_ITEMS))
    titles = [f"The {item}th film of the collection ({1950 + item % 70})" for item in range(NUM_ITEMS)]
    for item, title in zip(popular, HOSTILE_TITLES, strict=False):
        titles[item] = title
    pl.DataFrame({"raw_id": [f"user-{u}" if u % 7 else f"<b>{u}</b>" for u in range(NUM_USERS)]}).write_parquet(
        directory / "users.parquet"
    )
    pl.DataFrame({"raw_id": [f"i{i}" for i in range(NUM_ITEMS)], "title": titles}).write_parquet(
        directory / "items.parquet"
    )
    counts = {name: frame.filter(pl.col("split") == i).height for i, name in enumerate(SPLITS)}
    manifest = Manifest(
        name="planted",
        num_users=NUM_USERS,
        num_items=NUM_ITEMS,
        counts=counts,
        source="synthetic",
        source_hash="5" * 64,
        content_hash="c" * 64,
        train_hash="7" * 64,
        columns=[name for name in frame.columns if name == "timestamp"],
        filters=[{"filter": "<i>min_rating</i>", "rows": 20_000}],
        split={"method": "global_time", "test_cut": 1_600_000_030},
        quarantine={},
        entities={},
        leak_audit=[
            {"name": "overlap_train_test", "passed": True, "count": 0, "detail": "no pair is in two splits"},
            {"name": "events_after_cut", "passed": not leak, "count": 3, "detail": "<script>alert('audit')</script>"},
            {"name": "cold_items", "passed": None, "count": 2, "detail": "2 items never occur in training"},
        ],
    )
    (directory / "manifest.json").write_text(json.dumps(manifest.model_dump(mode="json")))
    return Dataset.open(directory)


def write_run(
    directory: Path,
    dataset: Dataset,
    variants: tuple[Planted, ...] = DEFAULT,
    seeds: tuple[int, ...] = (0, 1),
    data_hash: str = "c" * 64,
) -> Path:
    """Write a finished run of ``variants`` x ``seeds``, evaluated by the real evaluator."""
    files = RunFiles(directory)
    utility, train = truth(), dataset.matrix("train")
    relevant, seen, raw_ids = dataset.matrix("test"), dataset.matrix("train", "valid"), dataset.raw_user_ids()
    results = []
    for planted in variants:
        for seed in seeds:
            model = NoisyTruth(utility, planted.noise, seed, planted.name)
            found = evaluate(
                model, relevant=relevant, seen=seen, train=train, ks=(10, 20), max_k=100, bootstrap=100, auc=False
            )
            files.write_evaluation(planted.name, seed, EvaluationSummary.model_validate(found.summary()))
            files.write_per_user(planted.name, seed, found.users, [raw_ids[u] for u in found.users], found.per_user)
            files.write_top_items(planted.name, seed, found.users, found.top_items)
            results.append(_result(files, planted, seed, found.metrics, found.ci95))
    files.write_config(_config(variants, seeds))
    files.write_dataset({**dataset.manifest.model_dump(mode="json"), "degrees": _degrees(train)})
    if any(v.compressor not in (None, "full") for v in variants):
        files.write_compression(_compression(variants))
    facts = DatasetFacts(
        name="planted",
        users=NUM_USERS,
        items=NUM_ITEMS,
        hash=data_hash,
        **{str(name): count for name, count in dataset.manifest.counts.items()},
    )
    files.write_metrics(
        Metrics(
            experiment="planted <b>experiment</b>",
            dataset=facts,
            variants=tuple(results),
            versions={"python": "3.11", "torch": "2.13.0"},
            command="recsys run planted.yaml 'x=</script><script>alert(9)</script>'",
            git="901c42f",
            finished="2026-11-21T09:30:00Z",
        )
    )
    return directory


def _result(
    files: RunFiles, planted: Planted, seed: int, metrics: dict[str, float], ci95: dict[str, tuple[float, float]]
) -> VariantResult:
    epochs = 30 if planted.rows else 0
    if epochs:
        goal = metrics["recall@20"]
        history = [
            Epoch(
                epoch=e,
                step=e * 100,
                seconds=0.4,
                loss=0.7 * float(np.exp(-e / 9)) + 0.1 + 0.02 * planted.noise,
                triples_per_second=250_000 + 1000 * e,
                rss_mib=700.0 + e,
                metrics={"recall@20": goal * (1 - float(np.exp(-e / 7)))} if e % 5 == 0 else {},
            )
            for e in range(1, epochs + 1)
        ]
        files.write_history(planted.name, seed, history)
    return VariantResult(
        name=planted.name,
        model=planted.model,
        compressor=planted.compressor,
        table_rows=planted.rows,
        table_bytes=planted.rows * 64 * 4,
        optimizer_bytes=planted.rows * 64 * 8,
        metrics={f"test/{name}": value for name, value in metrics.items()}
        | ({} if planted.valid is None else {"valid/recall@20": planted.valid}),
        ci95={f"test/{name}": value for name, value in ci95.items()},
        seconds={"train": 0.4 * epochs, "evaluate": 0.3},
        epochs=epochs,
        seed=seed,
    )


def _config(variants: tuple[Planted, ...], seeds: tuple[int, ...]) -> Experiment:
    models = {"mf": Mf(), "popularity": Popularity(), "item_knn": ItemKnn()}
    return Experiment(
        experiment="planted",
        description="Planted preferences <em>seen</em> through noise.",
        seeds=seeds,
        dataset=DatasetConfig(name="planted", source="synthetic"),
        variants=tuple(
            Variant.model_validate(
                {
                    "name": v.name,
                    "model": models[v.model],
                    "compressor": v.compressor and Compressor.model_validate({"name": v.compressor}),
                }
            )
            for v in variants
        ),
    )


def _degrees(train: csr_array) -> dict[str, dict[int, int]]:
    sides = {"users": np.diff(train.indptr), "items": np.bincount(train.indices, minlength=train.shape[1])}
    return {
        side: dict(zip(*(p.tolist() for p in np.unique(v, return_counts=True)), strict=True))
        for side, v in sides.items()
    }


def _compression(variants: tuple[Planted, ...]) -> Compression:
    maps = {}
    for v in variants:
        if v.compressor is None:
            continue
        counts = [0, 40, 12, 9, 3, 1] if "graph" in v.compressor else [2, 10, 25, 20, 0, 0]
        side = {
            "ids": 500,
            "seen_ids": 500,
            "rows": v.rows,
            "rows_used": v.rows - 2,
            "rows_per_id": 1,
            "bucket": {"min": 0, "median": 4.0, "mean": 6.1, "max": 29, "gini": 0.41},
            "histogram": {"edges": [0, 1, 2, 4, 8, 16, 32], "counts": counts},
            "shared_ids": 480,
            "distinct_embeddings": 66,
            "colliding_ids": 470,
            "shared_interactions": 0.93,
        }
        maps[v.compressor] = {"users": side, "items": side}
    return Compression(
        budget={"rows": "16%", "user_rows": 66, "item_rows": 67},
        clustering={
            "algorithm": "louvain",
            "resolution": 12.5,
            "modularity": 0.412,
            "num_user_clusters": 66,
            "num_item_clusters": 67,
            "seconds": 0.8,
        },
        stability={
            "orders": 5,
            "users": {"ari": 0.81, "ari_min": 0.77, "nmi": 0.9},
            "items": {"ari": 0.79, "ari_min": 0.7, "nmi": 0.88},
        },
        maps=maps,
        worst_buckets=tuple(
            WorstBucket(side="items", row=r, size=29 - r, titles=HOSTILE_TITLES[r : r + 5], compressor="graphhash")
            for r in range(3)
        ),
    )
