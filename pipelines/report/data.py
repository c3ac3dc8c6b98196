"""A run directory as the report sees it: seeds of a variant together, per-user values of all variants side by side."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.config import Experiment
from pipelines.config_models import Mf, NeuMf
from pipelines.config_section import Section, TableModel
from pipelines.config_two_tower import TwoTower
from pipelines.run_directory import selection_metric
from pipelines.run_files import RunFiles
from pipelines.run_schema import Curve, Epoch, EvaluationSummary, Metrics, VariantResult
from recsys.intervals import bootstrap_means

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MODEL_NAMES = {"mf": "MF", "popularity": "Popularity", "item_knn": "ItemKNN", "ials": "iALS"}
MODEL_NAMES |= {"lightgcn": "LightGCN", "ngcf": "NGCF", "kgat": "KGAT", "simplex": "SimpleX", "neumf": "NeuMF"}
MODEL_NAMES |= {"two_tower": "two-tower", "sasrec": "SASRec", "hstu": "HSTU", "tiger": "TIGER", "ensemble": "ensemble"}
MODEL_NAMES |= {"rpg": "RPG"}
MODEL_NAMES |= {"ease": "EASE", "slim": "SLIM", "gf_cf": "GF-CF", "cheby_cf": "ChebyCF", "bspm": "BSPM"}
COMPRESSOR_NAMES = {
    "full": "full table",
    "modulo": "modulo",
    "universal_hash": "universal hash",
    "double_hash": "double hash",
    "head": "most frequent ids",
    "frequency": "frequency",
    "double_frequency": "double frequency",
    "quotient_remainder": "quotient-remainder",
    "lsh": "LSH",
    "graphhash": "GraphHash",
    "double_graphhash": "double GraphHash",
    "baco": "balanced label propagation",
    "multi_graphhash": "multi-resolution GraphHash",
    "residual_codes": "residual codes",
    "semantic_ngram": "semantic n-grams",
    "semantic_spm": "semantic pieces",
}
SPARSE_NAMES = {"dynamic": "dynamic mask", "static": "static mask", "prune": "pruned"}
_FAMILIES = {"double_graphhash": "graphhash", "double_frequency": "frequency"}


@dataclasses.dataclass(frozen=True)
class VariantRun:
    """One variant, all its seeds.

    Attributes:
        name: name in the configuration.
        style: 0-based number that fixes its colour and marker in every figure; one for all budgets of a variant.
        results: one per seed, in the order of the seeds; the other tuples run along.
        stored: what share of the tables' entries is stored and how it was found, empty for all of them.
        dtype: of the tables' rows, empty for float32.
    """

    name: str
    style: int
    results: tuple[VariantResult, ...]
    evaluations: tuple[EvaluationSummary | None, ...]
    histories: tuple[list[Epoch], ...]
    stored: str = ""
    dtype: str = ""

    @property
    def first(self) -> VariantResult:
        """Result of the first seed, for what does not depend on the seed."""
        return self.results[0]

    @property
    def is_baseline(self) -> bool:
        """Whether the model is one that every learned model has to beat."""
        return self.first.is_baseline

    @property
    def is_compressed(self) -> bool:
        """Whether it is learned and its ids share rows, or its tables store a share of their entries."""
        return not self.is_baseline and (self.first.compressor not in (None, "full") or bool(self.stored))

    @property
    def is_full(self) -> bool:
        """Whether it is learned with a whole row for every id; a model without tables is not."""
        return not self.is_baseline and self.first.compressor == "full" and not self.stored

    @property
    def family(self) -> str:
        """Compressors with the same idea share a family: double GraphHash is a GraphHash."""
        compressor = self.first.compressor or ""
        return _FAMILIES.get(compressor, compressor) + self.stored

    @property
    def method(self) -> str:
        """Model and compressor for people."""
        model = MODEL_NAMES.get(self.first.model, self.first.model)
        compressor = self.first.compressor
        if self.is_baseline or not compressor:
            return model
        shared = [] if compressor == "full" and self.stored else [COMPRESSOR_NAMES.get(compressor, compressor)]
        return ", ".join([model, *shared, *filter(None, [self.stored, self.dtype])])

    def metric(self, name: str) -> float | None:
        """Mean over seeds of "test/recall@20" or the like, None if a seed lacks it."""
        values = [result.metrics[name] for result in self.results if name in result.metrics]
        return float(np.mean(values)) if len(values) == len(self.results) else None

    def mean(self, field: str) -> float:
        """Mean over seeds of a numeric field of the results."""
        return float(np.mean([getattr(result, field) for result in self.results]))

    def seconds(self, stage: str) -> float | None:
        """Mean over seeds of the seconds of a stage, None if a seed lacks it."""
        values = [result.seconds[stage] for result in self.results if stage in result.seconds]
        return float(np.mean(values)) if len(values) == len(self.results) else None

    @property
    def evaluation(self) -> EvaluationSummary | None:
        """Evaluation of the first seed."""
        return self.evaluations[0]


def family_name(variant: str) -> str:
    """The name of a variant without its budget.

    >>> family_name("mf-graphhash@16%")
    'mf-graphhash'
    """
    return variant.partition("@")[0]


def stored_entries(model: Section) -> str:
    """The share of the entries of a model's tables and layers that is stored, in words; empty for all.

    >>> stored_entries(Mf(mixed_dims={"density": 0.2}))
    'mixed dimensions, density 0.2'
    >>> stored_entries(TwoTower(sparse_layers={"density": 0.2}))
    'layers: dynamic mask, density 0.2'
    """
    words = []
    if isinstance(model, Mf | TwoTower) and model.sparse:
        words.append(f"{SPARSE_NAMES[model.sparse.method]}, density {model.sparse.density:g}")
    if isinstance(model, NeuMf | TwoTower) and model.sparse_layers:
        layers = model.sparse_layers
        words.append(f"layers: {SPARSE_NAMES[layers.method]}, density {layers.density:g}")
    if isinstance(model, Mf) and model.mixed_dims:
        words.append(f"mixed dimensions, density {model.mixed_dims.density:g}")
    return ", ".join(words)


def stored_dtype(model: Section) -> str:
    """The type of the rows of a model's tables, in words; empty for float32, and for a model without tables."""
    return f"{model.table_dtype} rows" if isinstance(model, TableModel) and model.table_dtype != "float32" else ""


class Run:
    """A whole run, read once.

    Args:
        directory: the run directory.

    Attributes:
        files: of the run.
        results: ``metrics.json``.
        config: the resolved configuration, None if the directory has none.
        variants: in the order of ``metrics.json``.
        selection: the metric that selected epochs, e.g. "recall@20", and that the report ranks by.
    """

    def __init__(self, directory: Path) -> None:
        self.files = RunFiles(directory)
        self.results: Metrics = self.files.metrics()
        self.config: Experiment | None = self.files.config() if self.files.config_file.exists() else None
        self.variants = self._variants()
        self.selection = selection_metric(self.files)

    def _variants(self) -> tuple[VariantRun, ...]:
        by_name: dict[str, list[VariantResult]] = {}
        for result in self.results.variants:
            by_name.setdefault(result.name, []).append(result)
        styles = {name: style for style, name in enumerate(dict.fromkeys(map(family_name, by_name)))}
        stored = {v.name: stored_entries(v.model) for v in self.config.variants} if self.config else {}
        dtypes = {v.name: stored_dtype(v.model) for v in self.config.variants} if self.config else {}
        return tuple(
            VariantRun(
                name=name,
                style=styles[family_name(name)],
                results=tuple(sorted(results, key=lambda result: result.seed)),
                evaluations=tuple(self.files.evaluation(name, seed) for seed in sorted(r.seed for r in results)),
                histories=tuple(self.files.history(name, seed) for seed in sorted(r.seed for r in results)),
                stored=stored.get(name, ""),
                dtype=dtypes.get(name, ""),
            )
            for name, results in by_name.items()
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed of the run, ascending."""
        return tuple(sorted({result.seed for result in self.results.variants}))

    def variant(self, name: str) -> VariantRun:
        """The variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)

    @functools.cached_property
    def ranking(self) -> tuple[VariantRun, ...]:
        """Variants with the selection metric, best first; ties keep the order of the run."""
        scored = [v for v in self.variants if v.metric(f"test/{self.selection}") is not None]
        return tuple(sorted(scored, key=lambda v: -(v.metric(f"test/{self.selection}") or 0.0)))

    def interval(self, variant: VariantRun, metric: str) -> tuple[float, float] | None:
        """95 % interval over users of the test metric, of the mean over seeds where there are several."""
        stored = [result.ci95.get(f"test/{metric}") for result in variant.results]
        if len(stored) == 1 or self.per_user is None or metric != self.selection:
            ends = [pair for pair in stored if pair is not None]
            return (float(np.mean([e[0] for e in ends])), float(np.mean([e[1] for e in ends]))) if ends else None
        if variant.name not in self.per_user.values:
            return None
        low, high = bootstrap_means(self.per_user.mean(variant.name)[:, None], 1000, seed=0)
        return float(low[0]), float(high[0])

    def curve(self, variant: VariantRun, name: str) -> Curve | None:
        """Curve of a metric over k with its band, averaged over the seeds; None if a seed lacks it."""
        curves = [e.curves[name] for e in variant.evaluations if e is not None and name in e.curves]
        if not curves or len(curves) < len(variant.results):
            return None
        parts = {field: np.mean([getattr(c, field) for c in curves], axis=0) for field in ("mean", "low", "high")}
        return Curve(**{field: tuple(part.tolist()) for field, part in parts.items()})

    @functools.cached_property
    def per_user(self) -> PerUser | None:
        """Per-user values of the selection metric, None if no variant has them."""
        return per_user_values(self.files, self.ranking, self.selection)


@dataclasses.dataclass(frozen=True)
class PerUser:
    """Values of one metric for the users that every variant was judged on.

    Attributes:
        metric: e.g. "recall@20".
        users: int64 [U] dense users, ascending.
        raw_ids: their raw ids.
        values: variant name to float64 [S, U], one row per seed.
    """

    metric: str
    users: IntArray
    raw_ids: list[str]
    values: dict[str, FloatArray]

    def mean(self, name: str) -> FloatArray:
        """Float64 [U], the mean over seeds."""
        average: FloatArray = self.values[name].mean(axis=0)
        return average


def per_user_values(files: RunFiles, variants: Sequence[VariantRun], metric: str) -> PerUser | None:
    """Align the per-user values of ``metric`` on the users for whom every variant has a finite one.

    Variants without the file or the metric are left out; None if none is left, or no user.
    """
    frames: dict[str, list[pl.DataFrame]] = {}
    for variant in variants:
        loaded = [files.per_user(variant.name, result.seed) for result in variant.results]
        found = [f.select("user", "raw_id", metric) for f in loaded if f is not None and metric in f.columns]
        if found and len(found) == len(variant.results):
            frames[variant.name] = found
    if not frames:
        return None
    everything = [frame for found in frames.values() for frame in found]
    common = functools.reduce(np.intersect1d, [frame["user"].to_numpy() for frame in everything]).astype(np.int64)
    values = {name: np.stack([_column(frame, metric, common) for frame in found]) for name, found in frames.items()}
    defined = np.isfinite(np.concatenate(list(values.values()))).all(axis=0)
    common, values = common[defined], {name: rows[:, defined] for name, rows in values.items()}
    if not common.size:
        return None
    first = everything[0].sort("user")
    place = np.searchsorted(first["user"].to_numpy(), common)
    return PerUser(metric, common, first["raw_id"].gather(place).to_list(), values)


def _column(frame: pl.DataFrame, metric: str, users: IntArray) -> FloatArray:
    frame = frame.sort("user")
    place = np.searchsorted(frame["user"].to_numpy(), users)
    return frame[metric].to_numpy().astype(np.float64)[place]
