"""The stages of a ranking experiment after its data: id maps, training, evaluation; each is cached."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from embeddings.budget import cluster_to_budget, resolve_budget
from embeddings.clustering import CoClustering
from embeddings.compress import compress
from embeddings.describe import describe
from embeddings.graph import degrees
from embeddings.id_map import IdMap
from embeddings.levels import Levels
from embeddings.names import SEMANTIC
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.compress import Semantic
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache, build_seconds, content_hash
from pipelines.config import Budget, Compressor
from pipelines.config_ranking import DcnV2, Din, Dlrm, FinalMlp, RankerModel, RankerTrain, RankingVariant, TowerSettings
from pipelines.config_semantic import SemanticRows
from pipelines.ranking.data import RankingData
from pipelines.stages.versions import versions
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.checkpoint import load_ranker, save_ranker
from recsys.rankers.dcn_v2 import Cross
from recsys.rankers.din import Interest
from recsys.rankers.evaluation import RankingEvaluation, evaluate_ranker
from recsys.rankers.final_mlp import Streams
from recsys.rankers.ranker import Ranker, Tower
from recsys.rankers.training import RankingSettings, fit_ranker
from recsys.rng import generator
from recsys.settings import EpochRecord, Selection

VERSION = 2
FEW_VALUES = 12
"""A field of at most so many values is a slice of the evaluation."""


class CompressibleData(Protocol):
    """What the compression of the fields of events reads."""

    hash: str
    sizes: dict[str, int]
    user: str
    item: str

    def graph(self) -> csr_array:
        """Float32 [users, items]: ones at the pairs of positive train events."""
        ...


class FieldMaps:
    """The id maps of every field: the user's and the item's compressed, each other value with a row of its own.

    The graph has the pairs of positive train events. GraphHash's clustering decides how many rows each side has, and
    every compressor gets as many.

    Args:
        cache: of the stages.
        data: the events.
        budget: rows of the two compressed tables together.
        dim: of their tables, which a budget in MiB needs.
        codes: of the items, for the semantic compressors; None for codes made from the graph.
    """

    def __init__(
        self, cache: Cache, data: CompressibleData, budget: Budget, dim: int, codes: SemanticCodes | None = None
    ) -> None:
        self._cache, self._data, self._budget, self._dim, self._codes = cache, data, budget, dim, codes
        self._graph: csr_array | None = None
        self._clusterings: dict[str, CoClustering] = {}

    def maps(self, compressor: Compressor, seed: int) -> tuple[dict[str, IdMap], Path | None]:
        """The map of each field, and where the two compressed ones lie."""
        own = {name: _identity(size) for name, size in self._data.sizes.items()}
        if compressor.name == "full":
            return own, None
        key = {
            "version": VERSION,
            "data": self._data.hash,
            "compressor": compressor.model_dump(mode="json"),
            "budget": self._budget.model_dump(mode="json"),
            "dim": self._dim if self._budget.table_mib else 0,
            "seed": seed,
            "libraries": versions(["numpy", "scipy", "numba"]),
        }
        if compressor.name in SEMANTIC:
            key["item codes"] = self._codes and self._codes.version
        entry = self._cache.stage("field-maps", key, lambda directory: self._build(compressor, seed, directory))
        own |= {name: IdMap.load(entry / f"{side}.safetensors") for side, name in self._sides()}
        return own, entry

    def _sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return ("users", self._data.user), ("items", self._data.item)

    def _build(self, compressor: Compressor, seed: int, directory: Path) -> None:
        if self._graph is None:
            self._graph = self._data.graph()
        graph = self._graph
        if compressor.algorithm not in self._clusterings:
            wanted = self._budget
            budget = resolve_budget(wanted.rows, wanted.table_mib, wanted.resolution, *graph.shape, self._dim)
            self._clusterings[compressor.algorithm] = cluster_to_budget(graph, budget, compressor.algorithm)
        clustering = self._clusterings[compressor.algorithm]
        shares = compressor.levels.model_dump() if compressor.levels else {}
        levels = Levels(**shares, algorithm=compressor.algorithm)
        rows = clustering.num_user_clusters, clustering.num_item_clusters
        rules = compressor.semantic or SemanticRows()
        semantic = Semantic(items=self._codes if rules.codes == "items" else None, n=rules.n)
        maps = compress(compressor.name, graph, *rows, clustering, seed, levels, semantic)
        if compressor.name in SEMANTIC and rules.users != "graph":
            maps = compress(rules.users, graph, *rows, clustering, seed)[0], maps[1]
        sides = dict(zip(("users", "items"), zip(maps, degrees(graph), strict=True), strict=True))
        for side, (id_map, _) in sides.items():
            id_map.save(directory / f"{side}.safetensors")
        write_json(directory / "maps.json", finite({side: describe(*pair) for side, pair in sides.items()}))


def _identity(size: int) -> IdMap:
    return IdMap(np.arange(size)[:, None], num_rows=size + 1, unseen_row=size, compressor="full")


@dataclasses.dataclass(frozen=True)
class TrainedRanker:
    """A trained ranker in the cache: ``checkpoint/``, ``history.json``, ``facts.json``; ``key`` made it."""

    entry: Path
    key: dict[str, Any]
    history: list[dict[str, Any]]
    facts: dict[str, Any]


def train_stage(
    cache: Cache,
    data: RankingData,
    variant: RankingVariant,
    maps: tuple[dict[str, IdMap], Path | None],
    seed: int,
    on_epoch: Callable[[EpochRecord], None],
) -> TrainedRanker:
    """Train a variant with one seed, or find it trained."""
    fields, entry = maps
    files = [] if entry is None else [entry / "users.safetensors", entry / "items.safetensors"]
    key = {
        "version": VERSION,
        "data": data.hash,
        "model": variant.model.model_dump(mode="json"),
        "train": variant.train.model_dump(mode="json", exclude={"checkpoint_minutes"}),
        "maps": content_hash(*files) if files else None,
        "seed": seed,
        "libraries": versions(["torch", "numpy", "numba", "fbgemm-gpu-cpu", "torchrec"]),
    }
    scratch = cache.scratch("train-ranker", key)

    def build(directory: Path) -> None:
        ranker, spec = build_model(variant.model, data, fields, seed)
        settings = ranking_settings(variant.model, variant.train)
        result = fit_ranker(
            ranker,
            data.events("train"),
            data.events("valid"),
            settings,
            seed=seed,
            checkpoint_dir=scratch,
            on_epoch=on_epoch,
        )
        save_ranker(ranker, spec, directory / "checkpoint")
        size = ranker.tables.bytes()
        facts = {
            "table_rows": sum(field.id_map.num_rows for field in ranker.tables.fields),
            "table_bytes": size.weights,
            "optimizer_bytes": size.optimizer,
            "epochs": result.best_epoch,
            "seconds": result.seconds,
            "peak_rss_mib": max(record.rss_mib for record in result.history),
        }
        write_json(directory / "facts.json", facts)
        write_json(directory / "history.json", finite([dataclasses.asdict(record) for record in result.history]))

    found = cache.stage("train-ranker", key, build)
    facts = json.loads((found / "facts.json").read_bytes())
    return TrainedRanker(found, key, json.loads((found / "history.json").read_bytes()), facts)


def build_model(config: RankerModel, data: RankingData, maps: dict[str, IdMap], seed: int) -> tuple[Ranker, RankerSpec]:
    """A ranker with freshly drawn tables and layers, and its description."""
    unknown = sorted(set(config.dims) - set(data.fields))
    if unknown:
        raise ValueError(f"model.dims names the field {unknown[0]!r}; the fields are {', '.join(data.fields)}")
    fields = [Field(name, maps[name], config.dims.get(name, config.dim)) for name in data.fields]
    optimizer = OptimizerSpec(**config.optimizer.model_dump())
    draws = generator(seed, "init", "tables")
    tables = build_collection(
        fields, backend=config.backend, optimizer=optimizer, init_std=config.init_std, generator=draws
    )
    spec = ranker_spec(config, data.item)
    return build_ranker(spec, tables, data.num_dense, seed=seed), spec


def ranker_spec(config: RankerModel, item: str = "item") -> RankerSpec:
    """The plain arguments of a ranker; ``item`` is the field of the candidate."""
    tower = _tower(config)
    match config:
        case DcnV2():
            return RankerSpec(config.name, tower, Cross(config.layers, config.structure, config.rank, config.experts))
        case Dlrm():
            return RankerSpec(config.name, tower, bottom=config.bottom)
        case Din():
            return RankerSpec(config.name, tower, interest=Interest(item, config.attention))
        case FinalMlp():
            streams = Streams(_tower(config.second), config.heads, config.gates, config.gate_hidden)
            return RankerSpec(config.name, tower, streams=streams)
        case _:
            return RankerSpec(config.name, tower)


def _tower(config: TowerSettings) -> Tower:
    return Tower(config.hidden, config.dropout, config.batch_norm)


def ranking_settings(model: RankerModel, train: RankerTrain) -> RankingSettings:
    """The plain arguments of the training."""
    return RankingSettings(
        batch_size=train.batch_size,
        epochs=train.epochs,
        lr=train.lr,
        table_lr=model.optimizer.lr,
        weight_decay=train.weight_decay,
        plateau_factor=train.plateau_factor,
        selection=Selection(train.selection, 1, train.patience, refit=False),
        checkpoint_minutes=train.checkpoint_minutes,
    )


@dataclasses.dataclass(frozen=True)
class EvaluatedRanker:
    """A test evaluation and the log-odds [E] behind it, in the order of the test events."""

    evaluation: RankingEvaluation
    scores: npt.NDArray[np.float32]
    seconds: float


def evaluate_stage(cache: Cache, data: RankingData, trained: TrainedRanker) -> EvaluatedRanker:
    """Evaluate a trained ranker on test, or find it evaluated."""
    key = {"version": VERSION, "intervals": 1, "trained": trained.key}

    def build(directory: Path) -> None:
        events = data.events("test")
        scores = load_ranker(trained.entry / "checkpoint").scores(events)
        few = tuple(name for name in data.fields if data.sizes[name] <= FEW_VALUES)
        found = evaluate_ranker(
            events, scores, data.events("train"), user=data.user, item=data.item, by=few, sizes=data.sizes,
            ages=data.test_ages(),
        )  # fmt: skip
        save_file({"scores": scores}, directory / "scores.safetensors")
        write_json(directory / "evaluation.json", finite(_named(found, data, few).summary()))

    entry = cache.stage("evaluate-ranker", key, build)
    summary = json.loads((entry / "evaluation.json").read_bytes())
    scores = load_file(entry / "scores.safetensors")["scores"]
    return EvaluatedRanker(RankingEvaluation(**summary), scores, build_seconds(entry))


def _named(found: RankingEvaluation, data: RankingData, few: tuple[str, ...]) -> RankingEvaluation:
    """Slices by value with the values as the data writes them."""
    slices = dict(found.slices)
    for field in few:
        values = [*map(str, data.vocabulary(field)["value"].to_list()), "not in train"]
        rows = slices.pop(f"{field} value")
        slices[field] = [row | {"label": values[int(row["label"])]} for row in rows]
    return dataclasses.replace(found, slices=slices)
