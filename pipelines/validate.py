"""What ``recsys validate`` says of an experiment that has no mistakes: plan, data, memory."""

from __future__ import annotations

from pipelines.config import Experiment, Variant
from pipelines.config_loader import config_hash
from pipelines.config_section import TableModel
from pipelines.memory import Size, compressed_rows, measure, memory_lines
from pipelines.stages.compress import compressor_of, label


def describe(experiment: Experiment) -> str:
    """The plan of an experiment, the size of its source and the memory that it will need.

    Raises:
        DataError: The source is not there.
        ValueError: The budget is out of range for the data, or a search would hold nothing out.
    """
    size = measure(experiment.dataset)
    about = "" if size.exact else "about "
    lines = [
        f"{experiment.experiment}: no mistakes found",
        f"run directory: {experiment.output}/{experiment.experiment}-{config_hash(experiment)}",
        f"source: {experiment.dataset.source}, {about}{size.rows:,} rows, {about}{size.users:,} users,"
        f" {about}{size.items:,} items before filtering",
    ]
    for name, (rows, ids) in compressed_rows(experiment, size).items():
        lines.append(f"budget {name}: {about}{rows:,} table rows of {ids:,} ({rows / ids:.1%})")
    lines.append(f"variants, each with seeds {', '.join(map(str, experiment.seeds))}:")
    for variant in experiment.variants:
        model = variant.model
        _check_held_out(variant, size)
        tables = ""
        if isinstance(model, TableModel):
            sparse = getattr(model, "sparse", None)
            share = "" if sparse is None else f", sparse {100 * sparse.density:.3g} %"
            tables = f", {label(compressor_of(variant.compressor))}{share}, dim {model.dim}"
            tables += "" if model.table_dtype == "float32" else f" in {model.table_dtype}"
        lines.append(f"  {variant.name}: {model.name}{tables}")
    return "\n".join([*lines, *memory_lines(experiment)])


def _check_held_out(variant: Variant, size: Size) -> None:
    search = getattr(variant.model, "mixed_dims", None)
    if search is not None and round(search.held_out * size.rows) == 0:
        share = f"mixed_dims.held_out {search.held_out} of at most {size.rows:,} interactions"
        raise ValueError(f"{variant.name}: {share} is none; raise it")
