"""The stages of a ranking experiment after its id maps: training and evaluation; each is cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save_file

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache
from pipelines.config_ranking import DcnV2, Din, Dlrm, FinalMlp, RankerModel, RankingVariant, TowerSettings
from pipelines.events.stages import EvaluatedRanker, Maps, TrainedRanker, ranking_settings, train_in_cache, training_key
from pipelines.ranking.data import RankingData
from pipelines.stages.versions import versions
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.checkpoint import load_ranker, save_ranker
from recsys.rankers.dcn_v2 import Cross
from recsys.rankers.din import Interest
from recsys.rankers.evaluation import RankingEvaluation, evaluate_ranker
from recsys.rankers.final_mlp import Streams
from recsys.rankers.ranker import Ranker, Tower
from recsys.rankers.training import fit_ranker
from recsys.rng import generator
from recsys.settings import EpochRecord, FitResult

VERSION = 5
FEW_VALUES = 12
"""A field of at most so many values is a slice of the evaluation."""


def train_stage(
    cache: Cache,
    data: RankingData,
    variant: RankingVariant,
    maps: Maps,
    seed: int,
    on_epoch: Callable[[EpochRecord], None],
) -> TrainedRanker:
    """Train a variant with one seed, or find it trained."""
    libraries = versions(["torch", "numpy", "numba", "fbgemm-gpu-cpu", "torchrec"])
    key = {"version": VERSION, "libraries": libraries} | training_key(data, variant, maps, seed)

    def fit(scratch: Path, checkpoint: Path) -> tuple[Ranker, FitResult]:
        ranker, spec = build_model(variant.model, data, maps.fields, seed)
        result = fit_ranker(
            ranker,
            data.events("train"),
            data.events("valid"),
            ranking_settings(variant),
            seed=seed,
            checkpoint_dir=scratch,
            on_epoch=on_epoch,
        )
        save_ranker(ranker, spec, checkpoint)
        return ranker, result

    return train_in_cache(cache, "train-ranker", key, fit)


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


def evaluate_stage(cache: Cache, data: RankingData, trained: TrainedRanker) -> EvaluatedRanker:
    """Evaluate a trained ranker on test, or find it evaluated."""
    key = {"version": VERSION, "evaluation": 2, "trained": trained.key}

    def build(directory: Path) -> None:
        events = data.events("test")
        scores = load_ranker(trained.entry / "checkpoint").scores(events)
        few = tuple(name for name in data.fields if data.sizes[name] <= FEW_VALUES)
        found = evaluate_ranker(
            events, scores, data.events("train"), user=data.user, item=data.item, by=few, sizes=data.sizes,
            ages=data.test_ages(), users=data.test_users(),
        )  # fmt: skip
        save_file({"scores": scores}, directory / "scores.safetensors")
        write_json(directory / "evaluation.json", finite(_named(found, data, few).summary()))

    return EvaluatedRanker.read(cache.stage("evaluate-ranker", key, build), "scores")


def _named(found: RankingEvaluation, data: RankingData, few: tuple[str, ...]) -> RankingEvaluation:
    """Slices by value with the values as the data writes them."""
    slices = dict(found.slices)
    for field in few:
        values = [*map(str, data.vocabulary(field)["value"].to_list()), "not in train"]
        rows = slices.pop(f"{field} value")
        slices[field] = [row | {"label": values[int(row["label"])]} for row in rows]
    return dataclasses.replace(found, slices=slices)
