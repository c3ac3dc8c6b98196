"""Rules of a ranking experiment that no single field can tell, and what ``recsys validate`` says of one."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.config import Compressor
from pipelines.config_checks import (
    check_algorithm,
    check_budget,
    check_levels,
    check_names,
    check_optimizer,
    check_rows,
)
from pipelines.config_loader import run_path
from pipelines.config_narrow import refuse_narrow
from pipelines.config_problems import Finding, did_you_mean
from pipelines.config_ranking import Data, FieldCompressor, NextItemData, RankingExperiment, RankingVariant, TableData
from pipelines.config_semantic import SemanticIds, check_semantic_ids, check_semantic_rows
from pipelines.frozen_settings import check_frozen
from pipelines.sweep.space import check_search


def check_ranking(experiment: RankingExperiment) -> Iterator[Finding]:
    """Yield the key and the message of every rule that ``experiment`` breaks."""
    from pipelines.ranking.check_columns import check_columns  # imports polars

    yield from check_budget(experiment.budget)
    yield from check_search(experiment)
    yield from check_frozen(experiment.semantic_ids)
    for place, message in (*_check_roles(experiment.dataset), *check_columns(experiment.dataset)):
        yield ("dataset", *place), message
    if isinstance(experiment.dataset, NextItemData) and experiment.dataset.min_positives:
        message = "every interaction is positive and the items of a catalogue all have ids; remove it"
        yield ("dataset", "min_positives"), message
    if experiment.semantic_ids is not None and not isinstance(experiment.dataset, NextItemData):
        message = (
            f"needs a catalogue of items, which format {experiment.dataset.format} lacks; use next_item, or remove it"
        )
        yield ("semantic_ids",), message
    yield from check_semantic_ids(experiment.semantic_ids, dense=False)
    yield from check_names(experiment)
    for index, variant in enumerate(experiment.variants):
        for key, message in _check_variant(variant, experiment):
            yield ("variants", index, *key), message


def _check_roles(dataset: Data) -> Iterator[Finding]:
    if dataset.user == dataset.item:
        message = (
            f"is {dataset.item!r}, which is dataset.user too; name another field, whose pairs with it are the graph"
        )
        yield ("item",), message
    if not isinstance(dataset, TableData):
        return
    label = dataset.label.column
    told = f"the column {label!r} is the label, which a model would only copy; remove it"
    yield from ((("fields", place), told) for place, name in enumerate(dataset.fields) if name == label)
    if label in dataset.numeric:
        yield ("numeric", label), told


def _check_variant(variant: RankingVariant, experiment: RankingExperiment) -> Iterator[Finding]:
    from pipelines.ranking.check_model import check_id_dropout, check_model

    dataset = experiment.dataset
    for key, message in _check_compressor(variant.compressor, experiment.semantic_ids):
        yield ("compressor", *key), message
    for name, own in variant.field_compressors.items():
        for key, message in _check_field(name, own, dataset):
            yield ("field_compressors", name, *key), message
    if variant.model.name == "din":
        if not (isinstance(dataset, NextItemData) and dataset.history):
            message = "din looks at what users had before; use dataset.format next_item with history >= 1"
            yield ("model", "name"), message
        if variant.model.backend == "torchrec":
            yield ("model", "backend"), "din needs backend torch or fbgemm, got torchrec"
    for key, message in check_model(variant.model, dataset):
        yield ("model", *key), message
    for key, message in check_id_dropout(variant.train, dataset):
        yield ("train", *key), message
    if variant.model.batch_norm and variant.train.batch_size < 2:
        yield ("train", "batch_size"), "model.batch_norm takes the variance of a batch; use at least 2"
    yield from check_optimizer(variant.model)


def _check_compressor(compressor: Compressor, ids: SemanticIds | None) -> Iterator[Finding]:
    for key, message in (*check_levels(compressor), *check_semantic_rows(compressor, ids), *refuse_narrow(compressor)):
        yield key[1:], message


def _check_field(name: str, compressor: FieldCompressor, dataset: Data) -> Iterator[Finding]:
    from pipelines.ranking.sources import field_names  # imports polars

    fields = field_names(dataset)
    for role, taken in (("user", dataset.user), ("item", dataset.item)):
        if name == taken:
            yield (), f"is dataset.{role}, whose rows `compressor` and `budget` decide; set these and remove it here"
    if name not in fields:
        yield (), f"there is no such field{did_you_mean(name, fields)} (the fields are {', '.join(fields)})"
    if compressor.name == "full":
        yield ("name",), "full has a row for each value, as a field without a compressor; name another, or remove it"
    for message in check_rows(compressor.rows, 1, "the values share them"):
        yield ("rows",), message
    yield from _check_compressor(compressor, None)
    for key, message in check_algorithm(compressor):
        yield key[1:], message


def describe_ranking(experiment: RankingExperiment) -> str:
    """The plan of a ranking experiment without mistakes."""
    from pipelines.ranking.memory import memory_lines  # imports polars

    lines = [f"{experiment.experiment}: no mistakes found", *memory_lines(experiment)]
    lines.append(f"run directory: {run_path(experiment)}")
    lines.append(f"source: {experiment.dataset.source}")
    lines.append(f"variants, each with seeds {', '.join(map(str, experiment.seeds))}:")
    for variant in experiment.variants:
        rows = ", ".join(f"{name} {own.rows}" for name, own in variant.field_compressors.items())
        told = f"  {variant.name}: {variant.model.name}, {variant.compressors}, dim {variant.model.dim}"
        lines.append(f"{told}, rows: {rows}" if rows else told)
    return "\n".join(lines)
