"""Rules of a ranking experiment that no single field can tell, and what ``recsys validate`` says of one."""

from __future__ import annotations

from collections.abc import Iterator

from embeddings.names import SEMANTIC
from pipelines.config_checks import check_budget, check_levels, check_names, check_optimizer
from pipelines.config_loader import run_path
from pipelines.config_problems import Finding
from pipelines.config_ranking import NextItemData, RankingExperiment
from pipelines.errors import DataError
from pipelines.sweep.space import check_search


def check_ranking(experiment: RankingExperiment) -> Iterator[Finding]:
    """Yield the key and the message of every rule that ``experiment`` breaks."""
    from pipelines.ranking.sources import files_of  # imports polars

    yield from check_budget(experiment.budget)
    yield from check_search(experiment)
    try:
        files_of(experiment.dataset)
    except DataError as error:
        yield ("dataset", "source"), str(error)
    if experiment.semantic_ids is not None and not isinstance(experiment.dataset, NextItemData):
        message = (
            f"needs a catalogue of items, which format {experiment.dataset.format} lacks; use next_item, or remove it"
        )
        yield ("semantic_ids",), message
    yield from check_names(experiment)
    for index, variant in enumerate(experiment.variants):
        where = ("variants", index)
        for key, message in check_levels(variant.compressor):
            yield (*where, *key), message
        if variant.compressor.semantic is not None and variant.compressor.name not in SEMANTIC:
            message = f"only {' and '.join(SEMANTIC)} have it, not {variant.compressor.name}; remove it"
            yield (*where, "compressor", "semantic"), message
        if variant.model.name == "din":
            if not (isinstance(experiment.dataset, NextItemData) and experiment.dataset.history):
                message = "din looks at what users had before; use dataset.format next_item with history >= 1"
                yield (*where, "model", "name"), message
            if variant.model.backend == "torchrec":
                yield (*where, "model", "backend"), "din needs backend torch or fbgemm, got torchrec"
        for key, message in check_optimizer(variant.model):
            yield (*where, *key), message


def describe_ranking(experiment: RankingExperiment) -> str:
    """The plan of a ranking experiment without mistakes."""
    from pipelines.ranking.memory import memory_lines  # imports polars

    lines = [f"{experiment.experiment}: no mistakes found", *memory_lines(experiment)]
    lines.append(f"run directory: {run_path(experiment)}")
    lines.append(f"source: {experiment.dataset.source}")
    lines.append(f"variants, each with seeds {', '.join(map(str, experiment.seeds))}:")
    lines += [f"  {v.name}: {v.model.name}, {v.compressor.name}, dim {v.model.dim}" for v in experiment.variants]
    return "\n".join(lines)
