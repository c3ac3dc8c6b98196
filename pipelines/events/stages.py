"""What the cached stages of all experiments on events share: the id maps of fields, and the files of a ranker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.sparse import csr_array

from embeddings.budget import Budget as ResolvedBudget
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
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache, build_seconds, content_hash
from pipelines.config import Budget, Compressor
from pipelines.config_multitask import TaskVariant
from pipelines.config_ranking import RankingVariant
from pipelines.config_semantic import SemanticRows
from pipelines.errors import DataError
from pipelines.events.data import PreparedEvents
from pipelines.stages.training_facts import records, training_facts
from pipelines.stages.versions import versions
from recsys.dense_adam import layer_bytes
from recsys.rankers.ranker import FieldModel
from recsys.rankers.training import RankingSettings
from recsys.settings import FitResult, Selection

MAPS_VERSION = 8


@dataclasses.dataclass(frozen=True)
class Maps:
    """The id maps of all fields.

    Attributes:
        fields: the map of each field.
        entry: of the cache, with the maps of user and item; None where these are not compressed.
        others: field -> entry of the cache with its map, for every other field that is compressed.
    """

    fields: dict[str, IdMap]
    entry: Path | None
    others: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """What ``maps.json`` of a variant says: ``users``, ``items``, and ``fields`` by name; empty if all is full."""
        found: dict[str, Any] = {}
        if self.entry is not None:
            found |= json.loads((self.entry / "maps.json").read_bytes())
        if self.others:
            found["fields"] = {name: json.loads((at / "map.json").read_bytes()) for name, at in self.others.items()}
        return found


class FieldMaps:
    """The id maps of every field: the user's and the item's compressed, each other value with a row of its own.

    The graph has the pairs of positive train events. GraphHash's clustering decides how many rows each side has, and
    every compressor gets as many.

    Args:
        cache: of the stages.
        data: the events.
        budget: rows of the two compressed tables together.
        codes: of the items, for the semantic compressors; None for codes made from the graph.
    """

    def __init__(self, cache: Cache, data: PreparedEvents, budget: Budget, codes: SemanticCodes | None = None) -> None:
        self._cache, self._data, self._budget, self._codes = cache, data, budget, codes
        self._graph: csr_array | None = None
        self._clusterings: dict[tuple[str, ResolvedBudget], CoClustering] = {}

    def maps(self, compressor: Compressor, dim: int, seed: int) -> Maps:
        """The maps of a compressor, made with a seed; ``dim`` is that of the tables, which a budget in MiB needs.

        Raises:
            DataError: Nothing can be compressed: a side has no id, or no pair of train has one on both sides.
            ValueError: The budget is out of range.
        """
        own = {name: _identity(size) for name, size in self._data.sizes.items()}
        if compressor.name == "full":
            return Maps(own, None)
        self._require_ids()
        key = {
            "version": MAPS_VERSION,
            "data": self._data.hash,
            "compressor": compressor.model_dump(mode="json"),
            "budget": self._budget.model_dump(mode="json"),
            "dim": dim if self._budget.table_mib else 0,
            "seed": seed,
            "libraries": versions(["numpy", "scipy", "numba"]),
        }
        if compressor.name in SEMANTIC:
            key["item codes"] = self._codes and self._codes.version
        entry = self._cache.stage("field-maps", key, lambda directory: self._build(compressor, dim, seed, directory))
        own |= {name: IdMap.load(entry / f"{side}.safetensors") for side, name in self._sides()}
        return Maps(own, entry)

    def _sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return ("users", self._data.user), ("items", self._data.item)

    def _require_ids(self) -> None:
        for role, field in (("user", self._data.user), ("item", self._data.item)):
            if not self._data.sizes[field]:
                raise DataError(
                    f"no value of {field!r}, which is dataset.{role}, has enough train events for an id of its own"
                    f" (min_count {self._data.facts.get('min_count', 1)}, min_positives"
                    f" {self._data.facts.get('min_positives', 0)}), so that there is nothing to compress; lower"
                    " these, or use compressor full"
                )

    def _build(self, compressor: Compressor, dim: int, seed: int, directory: Path) -> None:
        if self._graph is None:
            self._graph = self._data.graph()
        graph = self._graph
        if not graph.nnz:
            raise DataError(
                f"no positive train event has both a {self._data.user!r} and a {self._data.item!r} with an id, so that"
                " there is no graph to compress by; lower dataset.min_count or dataset.min_positives, or use"
                " compressor full"
            )
        wanted = self._budget
        budget = resolve_budget(wanted.rows, wanted.table_mib, wanted.resolution, *graph.shape, 4 * dim)
        place = compressor.algorithm, budget
        if place not in self._clusterings:
            self._clusterings[place] = cluster_to_budget(graph, budget, compressor.algorithm)
        clustering = self._clusterings[place]
        rows = clustering.num_user_clusters, clustering.num_item_clusters
        maps = compress_graph(compressor, graph, rows, clustering, seed, self._codes)
        sides = dict(zip(("users", "items"), zip(maps, degrees(graph), strict=True), strict=True))
        for side, (id_map, _) in sides.items():
            id_map.save(directory / f"{side}.safetensors")
        write_json(directory / "maps.json", finite({side: describe(*pair) for side, pair in sides.items()}))


def compress_graph(
    compressor: Compressor,
    graph: csr_array,
    rows: tuple[int, int],
    clustering: CoClustering | None,
    seed: int,
    codes: SemanticCodes | None = None,
) -> tuple[IdMap, IdMap]:
    """The maps of both sides of a graph by a compressor of the configuration; ``codes`` are those of its items."""
    shares = compressor.levels.model_dump() if compressor.levels else {}
    levels = Levels(**shares, algorithm=compressor.algorithm)
    rules = compressor.semantic or SemanticRows()
    items = codes if rules.codes == "items" else None
    semantic = Semantic(items=items, n=rules.n, popularity_share=rules.popularity_share)
    maps = compress(compressor.name, graph, *rows, clustering, seed, levels, semantic)
    if compressor.name in SEMANTIC and rules.users != "graph":
        maps = compress(rules.users, graph, *rows, clustering, seed)[0], maps[1]
    return maps


def _identity(size: int) -> IdMap:
    return IdMap(np.arange(size)[:, None], num_rows=size + 1, unseen_row=size, compressor="full")


@dataclasses.dataclass(frozen=True)
class TrainedRanker:
    """A trained ranker in the cache: ``checkpoint/``, ``history.json``, ``facts.json``; ``key`` made it."""

    entry: Path
    key: dict[str, Any]
    history: list[dict[str, Any]]
    facts: dict[str, Any]


def training_key(data: PreparedEvents, variant: RankingVariant | TaskVariant, maps: Maps, seed: int) -> dict[str, Any]:
    """What every training depends on; each kind of experiment adds its version and libraries."""
    files = [maps.entry / f"{side}.safetensors" for side in ("users", "items")] if maps.entry else []
    others = {name: content_hash(entry / "map.safetensors") for name, entry in maps.others.items()}
    key = {
        "data": data.hash,
        "model": variant.model.model_dump(mode="json"),
        "train": variant.train.model_dump(mode="json", exclude={"checkpoint_minutes"}),
        "maps": content_hash(*files) if files else None,
        "seed": seed,
    }
    return key | ({"field maps": others} if others else {})


def ranking_settings(variant: RankingVariant | TaskVariant) -> RankingSettings:
    """The plain arguments of the training, which have the names of the section's fields but for two."""
    train = variant.train
    same = train.model_dump(exclude={"selection", "patience"})
    selection = Selection(train.selection, 1, train.patience, refit=False)
    return RankingSettings(**same, table_lr=variant.model.optimizer.lr, selection=selection)


def train_in_cache(
    cache: Cache, stage: str, key: dict[str, Any], fit: Callable[[Path, Path], tuple[FieldModel, FitResult]]
) -> TrainedRanker:
    """Train a ranker, or find it trained.

    Args:
        cache: of the stages.
        stage: its name there.
        key: what the result depends on.
        fit: trains; its arguments are where a killed training left its state, and where to write the checkpoint.
    """
    scratch = cache.scratch(stage, key)

    def build(directory: Path) -> None:
        ranker, result = fit(scratch, directory / "checkpoint")
        layers = layer_bytes(ranker, ranker.tables.parameters())
        rows = sum(field.id_map.num_rows for field in ranker.tables.fields)
        facts = training_facts(result, rows=rows, tables=ranker.tables.bytes(), layers=layers)
        write_json(directory / "facts.json", facts)
        write_json(directory / "history.json", finite(records(result)))

    entry = cache.stage(stage, key, build)
    history, facts = (json.loads((entry / name).read_bytes()) for name in ("history.json", "facts.json"))
    return TrainedRanker(entry, key, history, facts)


@dataclasses.dataclass(frozen=True)
class EvaluatedRanker:
    """A test evaluation and the predictions behind it, in the order of the test events.

    Attributes:
        evaluation: what ``evaluation.json`` says.
        predictions: float32; log-odds [E], or [E, T]: log-odds of binary tasks, labels of regressions.
        seconds: that the evaluation took.
    """

    evaluation: dict[str, Any]
    predictions: npt.NDArray[np.float32]
    seconds: float

    @classmethod
    def read(cls, entry: Path, array: str) -> Self:
        """Read a cache entry; ``array`` is the name of its predictions."""
        evaluation = json.loads((entry / "evaluation.json").read_bytes())
        return cls(evaluation, load_file(entry / f"{array}.safetensors")[array], build_seconds(entry))
