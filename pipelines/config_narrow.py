"""What narrow rows go with."""

from __future__ import annotations

import math
from collections.abc import Iterator

from embeddings.names import WITHOUT_NARROW
from pipelines.config import Compressor
from pipelines.config_models import NeuMf
from pipelines.config_problems import Finding
from pipelines.config_section import TableModel


def check_narrow(compressor: Compressor, model: TableModel) -> Iterator[Finding]:
    """Yield a finding for each setting that narrow rows do not go with."""
    if not compressor.narrow:
        return
    if compressor.name in WITHOUT_NARROW:
        yield ("compressor", "narrow"), f"{compressor.name} has no rows beside its own; remove it"
    if model.backend != "torch":
        yield ("model", "backend"), f"got {model.backend!r}, but narrow rows need the torch back end"
    for other in ("sparse", "mixed_dims"):
        if getattr(model, other, None) is not None:
            yield ("model", other), "its rows have all columns; remove it, or compressor.narrow"
    if not math.isclose(compressor.narrow * model.table_dim, round(compressor.narrow * model.table_dim)):
        message = f"{compressor.narrow:g} of {model.table_dim} columns are no whole number; take a multiple of 1/dim"
        yield ("compressor", "narrow"), message
    if isinstance(model, NeuMf):
        yield ("compressor", "narrow"), "neumf's rows are two vectors side by side, of which the first columns are one"
    if compressor.semantic is not None and compressor.semantic.users != "graph":
        yield ("compressor", "semantic", "users"), "narrow rows beside other rows of users need users: graph"
    if getattr(model, "init", "normal") == "spectral":
        yield ("model", "init"), "spectral fits whole rows; use normal, or remove compressor.narrow"


def refuse_narrow(compressor: Compressor) -> Iterator[Finding]:
    """Yield a finding for narrow rows, which the tables of rankers do not have."""
    if compressor.narrow:
        yield ("compressor", "narrow"), "rankers' tables have no narrow rows; remove it"
