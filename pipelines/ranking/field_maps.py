"""Id maps of the fields beside user and item, each compressed by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from scipy.sparse import csr_array

from embeddings.budget import Budget, cluster_to_budget, parse_rows
from embeddings.clustering import CoClustering
from embeddings.describe import describe
from embeddings.graph import degrees
from embeddings.id_map import IdMap
from embeddings.names import CLUSTERED, SEMANTIC
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache
from pipelines.config_ranking import FieldCompressor, RankingVariant
from pipelines.errors import DataError
from pipelines.events.stages import MAPS_VERSION, Maps, compress_graph
from pipelines.ranking.data import RankingData
from pipelines.stages.versions import versions


class OtherFields:
    """The id maps of compressed fields beside user and item.

    The graph of a field has the pairs of item and value of positive train events. Its clusters are brought to exactly
    the rows of the field, and every compressor gets as many.

    Args:
        cache: of the stages.
        data: the events.
    """

    def __init__(self, cache: Cache, data: RankingData) -> None:
        self._cache, self._data = cache, data
        self._clusterings: dict[tuple[str, str, int], CoClustering] = {}

    def check(self, variants: Iterable[RankingVariant]) -> None:
        """Find mistakes that only the events tell, before anything is trained.

        Raises:
            DataError: A field cannot have so many rows.
        """
        for variant in variants:
            for field, compressor in variant.field_compressors.items():
                self._rows(field, compressor)

    def add(self, maps: Maps, compressors: Mapping[str, FieldCompressor], seed: int) -> Maps:
        """``maps`` with those of ``compressors``, by field, made with a seed.

        Raises:
            DataError: As :meth:`check`, or a field has no pair.
        """
        others = {field: self._entry(field, compressor, seed) for field, compressor in compressors.items()}
        own = {field: IdMap.load(entry / "map.safetensors") for field, entry in others.items()}
        return dataclasses.replace(maps, fields=maps.fields | own, others=others)

    def _rows(self, field: str, compressor: FieldCompressor) -> int:
        """Rows that the configuration gives a field, the unseen row not counted."""
        size = self._data.sizes[field]
        rows = parse_rows(compressor.rows, size)
        if not 1 <= rows <= size:
            asked = f"field_compressors.{field}.rows={compressor.rows!r} ({rows:,} rows)"
            raise DataError(f"{asked} is out of range: {size:,} values can have 1 to {size:,} rows")
        return rows

    def _entry(self, field: str, compressor: FieldCompressor, seed: int) -> Path:
        rows = self._rows(field, compressor)
        key = {
            "version": MAPS_VERSION,
            "data": self._data.hash,
            "field": field,
            "graph": [self._data.item, field],
            "compressor": compressor.model_dump(mode="json"),
            "seed": seed,
            "libraries": versions(["numpy", "scipy", "numba"]),
        }
        if compressor.name in SEMANTIC:
            key["semantic libraries"] = versions(["torch", "sentencepiece"])
        return self._cache.stage("field-map", key, lambda at: self._build(field, compressor, rows, seed, at))

    def _build(self, field: str, compressor: FieldCompressor, rows: int, seed: int, directory: Path) -> None:
        graph = self._data.graph(self._data.item, field)
        sides = degrees(graph)
        items, values = (int((side > 0).sum()) for side in sides)
        if not values:
            raise DataError(
                f"field_compressors.{field}: no positive train event has both an item and a value with an id, so that"
                " there is no graph; remove it, or use a smaller dataset.min_count"
            )
        rows = min(rows, values)
        item_rows, clustering = max(1, round(rows / values * items)), None
        if compressor.name in CLUSTERED:
            clustering = self._clustering(field, graph, rows, compressor)
            item_rows = clustering.num_user_clusters
        id_map = compress_graph(compressor, graph, (item_rows, rows), clustering, seed)[1]
        id_map.save(directory / "map.safetensors")
        write_json(directory / "map.json", finite(describe(id_map, sides[1])))

    def _clustering(self, field: str, graph: csr_array, rows: int, compressor: FieldCompressor) -> CoClustering:
        key = (field, compressor.algorithm, rows)
        if key not in self._clusterings:
            found = cluster_to_budget(graph, Budget(rows, None), compressor.algorithm, items_only=True)
            self._clusterings[key] = found
        return self._clusterings[key]
