"""The compression stages: cluster the training graph to the budget, then one pair of id maps for each compressor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from embeddings.budget import cluster_to_budget, resolve_budget
from embeddings.clustering import Algorithm, CoClustering
from embeddings.compress import compress
from embeddings.describe import describe, stability, worst_buckets
from embeddings.graph import degrees
from embeddings.id_map import IdMap
from embeddings.levels import Levels
from embeddings.names import CLUSTERED, SEMANTIC
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.compress import Semantic
from pipelines.atomic import write_json
from pipelines.cache import Cache
from pipelines.config import Compressor, Experiment
from pipelines.config_budgets import is_compressed
from pipelines.config_section import TableModel
from pipelines.config_semantic import SemanticRows
from pipelines.dataset import graph_hash
from pipelines.errors import DataError
from pipelines.run_schema import Compression, WorstBucket
from pipelines.stages.versions import versions

VERSION = 9
GRAPH = "graph.json"
"""File of an entry with the hash of the matrix that it was made from, for the leak audit."""
_LEVELLED = ("multi_graphhash", "residual_codes")


@dataclasses.dataclass(frozen=True)
class Maps:
    """The id maps of one compressor and the directory that holds their files."""

    users: IdMap
    items: IdMap
    directory: Path


class CompressionStage:
    """Id maps for the variants of an experiment, all with the same number of rows.

    Args:
        cache: Stage cache.
        experiment: Gives the budget, the dimension and the compressors.
        graph: Training pairs [users, items].
        train_hash: Hash of ``graph``, for the keys of the cache; the audit does not believe it, see :meth:`graphs`.
        item_codes: Of the semantic compressors; none where the experiment has no ``semantic_ids``.
        items_only: The users of these variants have no table: the budget is that of the items'.
    """

    def __init__(
        self,
        cache: Cache,
        experiment: Experiment,
        graph: csr_array,
        train_hash: str,
        item_codes: SemanticCodes | None = None,
        *,
        items_only: bool = False,
    ) -> None:
        self.cache = cache
        self.experiment = experiment
        self.graph = graph
        self.train_hash = train_hash
        self.item_codes = item_codes
        self.items_only = items_only
        self._clusterings: dict[Algorithm, tuple[CoClustering, Path]] = {}

    @property
    def compressors(self) -> list[Compressor]:
        """The distinct compressors of the variants with embedding tables, in their order."""
        found = [compressor_of(variant.compressor) for variant in self._with_tables]
        return list(dict.fromkeys(found))

    @property
    def _with_tables(self) -> list[Any]:
        return [variant for variant in self.experiment.variants if isinstance(variant.model, TableModel)]

    @property
    def _main_algorithm(self) -> Algorithm:
        """The algorithm whose clusters set the number of rows for the compressors that do not cluster."""
        clustered = [c.algorithm for c in self.compressors if c.name in CLUSTERED]
        return clustered[0] if clustered else "louvain"

    def clustering(self, algorithm: Algorithm) -> CoClustering:
        """The co-clustering that meets the budget."""
        return self._clustering(algorithm)[0]

    def _clustering(self, algorithm: Algorithm) -> tuple[CoClustering, Path]:
        if algorithm not in self._clusterings:
            entry = self.cache.stage("cluster", self._cluster_key(algorithm), lambda out: self._cluster(out, algorithm))
            labels, facts = load_file(entry / "labels.safetensors"), json.loads((entry / "facts.json").read_bytes())
            self._clusterings[algorithm] = CoClustering(labels["users"], labels["items"], **facts), entry
        return self._clusterings[algorithm]

    def _cluster_key(self, algorithm: Algorithm) -> dict[str, Any]:
        budget = dataclasses.asdict(self._budget())
        libraries = versions(["numpy", "scipy", "numba"])
        return {
            "version": VERSION,
            "graph": self.train_hash,
            "budget": budget | ({"of": "items"} if self.items_only else {}),
            "algorithm": algorithm,
            "libraries": libraries,
        }

    def _budget(self) -> Any:
        compressed = [variant for variant in self._with_tables if is_compressed(variant)]
        budget, model = self.experiment.budget, (compressed or self._with_tables)[0].model
        users, items = self.graph.shape
        return resolve_budget(
            budget.rows, budget.table_mib, budget.resolution, 0 if self.items_only else users, items, model.row_bytes
        )

    def _cluster(self, directory: Path, algorithm: Algorithm) -> None:
        found = cluster_to_budget(self.graph, self._budget(), algorithm, items_only=self.items_only)
        labels = {"users": found.user_labels.astype(np.int64), "items": found.item_labels.astype(np.int64)}
        save_file(labels, directory / "labels.safetensors")
        write_json(directory / "facts.json", found.facts())
        self._record_graph(directory)

    def _record_graph(self, directory: Path) -> None:
        write_json(directory / GRAPH, {"graph_hash": graph_hash(self.graph)})

    def graphs(self) -> dict[str, str]:
        """The hash of the matrix that each clustering and each pair of id maps was made from, as recorded with them.

        Raises:
            DataError: A cache entry has no record.
        """
        compressed = [c for c in self.compressors if c.name != "full"]
        algorithms = dict.fromkeys(self._algorithm(c) for c in compressed)
        entries = {f"clusters ({name})": self._clustering(name)[1] for name in algorithms}
        entries |= {f"id maps ({label(c)})": self.maps(c).directory for c in self.compressors}
        return {name: recorded_graph(name, entry) for name, entry in entries.items()}

    def maps(self, compressor: Compressor) -> Maps:
        """The id maps of one compressor."""
        entry = self.cache.stage("maps", self._maps_key(compressor), lambda out: self._compress(out, compressor))
        users = IdMap.load(entry / "user_map.safetensors")
        items = IdMap.load(entry / "item_map.safetensors")
        return Maps(users, items, entry)

    def _maps_key(self, compressor: Compressor) -> dict[str, Any]:
        clusters = None if compressor.name == "full" else self._cluster_key(self._algorithm(compressor))
        key = {
            "version": VERSION,
            "graph": self.train_hash,
            "compressor": compressor.name,
            "clusters": clusters,
            "seed": self.experiment.seeds[0],
        }
        if compressor.name in SEMANTIC:
            codes, settings = self._item_codes(compressor), _semantic(compressor)
            key |= {"semantic": settings.model_dump(mode="json"), "item_codes": codes and codes.version}
            key |= {"libraries": versions(["numba", "torch", "sentencepiece"])}
        key |= {"narrow": compressor.narrow} if compressor.narrow else {}
        return key | ({"levels": dataclasses.asdict(_levels(compressor))} if compressor.name in _LEVELLED else {})

    def _item_codes(self, compressor: Compressor) -> SemanticCodes | None:
        return self.item_codes if _semantic(compressor).codes == "items" else None

    def _algorithm(self, compressor: Compressor) -> Algorithm:
        return compressor.algorithm if compressor.name in CLUSTERED else self._main_algorithm

    def _compress(self, directory: Path, compressor: Compressor) -> None:
        seed = self.experiment.seeds[0]
        if compressor.name == "full":
            users, items = compress("full", self.graph, 1, 1, seed=seed)
        else:
            clusters = self.clustering(self._algorithm(compressor))
            rows = (clusters.num_user_clusters, clusters.num_item_clusters)
            given = clusters if compressor.name in CLUSTERED else None
            levels = _levels(compressor) if compressor.name in _LEVELLED else None
            semantic = None
            if compressor.name in SEMANTIC:
                rules = _semantic(compressor)
                alike = SemanticCodes(np.zeros((self.graph.shape[0], 1), np.int32), (1,))
                semantic = Semantic(
                    users=alike if self.items_only else None,  # nothing reads them: no codes of the graph are made
                    items=self._item_codes(compressor),
                    n=rules.n,
                    popularity_share=rules.popularity_share,
                )
            narrow = (0.0 if self.items_only else compressor.narrow, compressor.narrow)
            users, items = compress(compressor.name, self.graph, *rows, given, seed, levels, semantic, narrow)
            if compressor.name in SEMANTIC and rules.users != "graph":
                users = self.maps(Compressor(name=rules.users)).users
        users.save(directory / "user_map.safetensors")
        items.save(directory / "item_map.safetensors")
        self._record_graph(directory)

    def facts(self, user_titles: list[str], item_titles: list[str]) -> Compression | None:
        """What ``compression.json`` says; None if no variant compresses."""
        compressed = [c for c in self.compressors if c.name != "full"]
        if not compressed:
            return None
        maps = {label(c): self.maps(c) for c in self.compressors}
        sides = dict(zip(("users", "items"), degrees(self.graph), strict=True))
        titles = {"users": user_titles, "items": item_titles}
        if self.items_only:
            del sides["users"], titles["users"]
        described = {
            name: {side: describe(getattr(pair, side), sides[side]) for side in sides} for name, pair in maps.items()
        }
        main, budget = self._main_algorithm, self.experiment.budget.model_dump(exclude_none=True)
        used = dict.fromkeys([main, *map(self._algorithm, compressed)])
        rows = {name: budget | self._rows(name) for name in used}
        clusterings = {name: self._clustering_facts(name) for name in used}
        return Compression(
            budget=rows[main],
            budgets={name: rows[name] | clusterings[name] for name in used} if len(used) > 1 else {},
            **clusterings[main],
            maps=described,
            worst_buckets=_worst(maps, titles),
        )

    def _rows(self, algorithm: Algorithm) -> dict[str, int]:
        clusters = self.clustering(algorithm)
        users = 0 if self.items_only else clusters.num_user_clusters
        return {"user_rows": users, "item_rows": clusters.num_item_clusters}

    def _clustering_facts(self, algorithm: Algorithm) -> dict[str, Any]:
        clusters = self.clustering(algorithm)
        return {"clustering": clusters.facts(), "stability": self._stability(clusters)}

    def _stability(self, clusters: CoClustering) -> dict[str, Any]:
        """How much the clusters depend on the order of the nodes; measured once for each graph and resolution."""
        algorithm = clusters.algorithm

        def build(directory: Path) -> None:
            found = stability(self.graph, clusters.resolution, algorithm, seed=self.experiment.seeds[0])
            write_json(directory / "stability.json", found)

        entry = self.cache.stage("stability", {**self._cluster_key(algorithm), "seed": self.experiment.seeds[0]}, build)
        facts: dict[str, Any] = json.loads((entry / "stability.json").read_bytes())
        return facts


def compressor_of(compressor: Compressor | None) -> Compressor:
    """The compressor of a variant; none means a row for every id."""
    return compressor or Compressor()


def label(compressor: Compressor) -> str:
    """The name under which a compressor is reported.

    >>> label(Compressor(name="graphhash", algorithm="leiden"))
    'graphhash-leiden'
    >>> label(Compressor(name="multi_graphhash", levels={"count": 4}))
    'multi_graphhash-count=4'
    """
    other = compressor.name in (*CLUSTERED, "multi_graphhash") and compressor.algorithm != "louvain"
    name = f"{compressor.name}-{compressor.algorithm}" if other else compressor.name
    given = compressor.levels.model_dump(exclude_defaults=True) if compressor.levels else {}
    given |= compressor.semantic.model_dump(exclude_defaults=True) if compressor.semantic else {}
    given |= {"narrow": compressor.narrow} if compressor.narrow else {}
    return name + "".join(f"-{key}={_written(value)}" for key, value in given.items())


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "+".join(f"{one:g}" for one in value) if isinstance(value, tuple) else f"{value:g}"


def _levels(compressor: Compressor) -> Levels:
    given = compressor.levels.model_dump() if compressor.levels else {}
    return Levels(**given, algorithm=compressor.algorithm)


def _semantic(compressor: Compressor) -> SemanticRows:
    return compressor.semantic or SemanticRows()


def recorded_graph(name: str, entry: Path) -> str:
    """The hash of the matrix that an entry of the cache was made from.

    Raises:
        DataError: The entry has no record of it.
    """
    try:
        return str(json.loads((entry / GRAPH).read_bytes())["graph_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the cache entry of the {name} does not say which graph it was made from, so that the leak audit cannot"
            f" check it; delete {entry} and run again"
        ) from error


def _worst(maps: dict[str, Maps], titles: dict[str, list[str]], buckets: int = 5) -> tuple[WorstBucket, ...]:
    """The fullest rows of every compressed map with the titles of some members."""
    found = []
    for name, pair in maps.items():
        if name == "full":
            continue
        for side, names in titles.items():
            for row in worst_buckets(getattr(pair, side), buckets, members=10):
                members = tuple(names[i] for i in row["ids"])
                found.append(WorstBucket(side=side, row=row["row"], size=row["size"], titles=members, compressor=name))
    return tuple(found)
