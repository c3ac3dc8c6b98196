"""The generative retriever of a configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.config_problems import Finding
from pipelines.config_section import EpochModel, Section, Width
from pipelines.config_semantic import Opq, RqKmeans, RqVae, SemanticIds
from pipelines.errors import DataError
from pipelines.frozen_settings import in_force

if TYPE_CHECKING:
    from pipelines.config import Experiment, Variant

_NEVER_UNIQUE = (RqKmeans, RqVae, Opq)


class AdamW(Section):
    """AdamW with a linear warm-up, then a rate that falls as the root of the steps."""

    lr: float = Field(default=1e-3, gt=0, description="at its highest")
    warmup_steps: int = Field(default=1000, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)


class Dense(Section):
    """LIGER's dense head (Yang et al. 2024): ranks what the search finds and all cold items by their content.

    The content is that of ``semantic_ids.features``, without the vectors of the training graph.
    """

    weight: float = Field(default=1.0, gt=0, description="of its loss beside that of the codes")
    temperature: float = Field(default=0.07, gt=0, description="of the cosines in its loss")
    candidates: int | None = Field(
        default=20, ge=1, description="items of the search that it ranks; null: it ranks all items, without a search"
    )
    hidden: tuple[Width, ...] = Field(default=(), description="widths of the hidden layers that project the content")


class Tiger(EpochModel):
    """A T5 that reads and writes ``semantic_ids`` (Rajput et al. 2023); ``batch_size`` counts targets."""

    name: Literal["tiger"] = "tiger"
    dim: int = Field(default=128, ge=1)
    layers: int = Field(default=4, ge=1, description="of the encoder, and of the decoder")
    heads: int = Field(default=6, ge=1)
    head_dim: int = Field(default=64, ge=1)
    inner: int = Field(default=1024, ge=1, description="width of the feed-forward networks")
    max_items: int = Field(default=20, ge=1, description="events that are read; older ones are left out")
    user_tokens: int = Field(default=1, ge=1, description="tokens that users are hashed to; 1: none of their own")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    beam: int = Field(default=50, ge=1, description="prefixes that a search keeps; more where longer lists are asked")
    dense: Dense | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    optimizer: AdamW = AdamW()
    validation_users: int | None = Field(default=None, ge=1, description="that select the epoch, at random; null: all")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")


def check_tiger(experiment: Experiment, variant: Variant) -> Iterator[Finding]:
    """Yield the key and the message of every rule that a variant with :class:`Tiger` breaks."""
    assert isinstance(variant.model, Tiger)
    if experiment.semantic_ids is None:
        yield ("model", "name"), "tiger writes semantic ids: add a section `semantic_ids`"
    else:
        with contextlib.suppress(DataError):  # told where the codes are named
            yield from _check_ids(
                variant.model, in_force(experiment.semantic_ids), max(experiment.evaluate.k, default=0)
            )
    if experiment.evaluate.auc:
        yield ("model", "name"), "tiger does not score the whole catalogue: set evaluate.auc to false"
    if variant.train.positives != "interactions":
        yield ("train", "positives"), f"tiger reads every user once an epoch, got {variant.train.positives!r}"
    if variant.train.lr_decay != 1:
        yield ("train", "lr_decay"), f"tiger has a schedule of its own, got {variant.train.lr_decay}; set it to 1"


def _check_ids(model: Tiger, ids: SemanticIds, longest: int) -> Iterator[Finding]:
    if ids.collisions == "keep" and isinstance(ids.tokeniser, _NEVER_UNIQUE):
        yield ("model", "name"), "tiger needs one code an item: set semantic_ids.collisions to digit or reassign"
    if model.dense is not None:
        yield from _check_dense(model.dense, ids, longest)


def _check_dense(dense: Dense, ids: SemanticIds, longest: int) -> Iterator[Finding]:
    if not ids.content_features:
        names = ", ".join(one.name for one in ids.features)
        yield (
            ("model", "dense"),
            f"a cold item has no vector of the training graph, and semantic_ids.features has only {names}: add text,"
            " matrix or sentence_transformers",
        )
    if dense.candidates is not None and dense.candidates < longest:
        yield (
            ("model", "dense", "candidates"),
            f"got {dense.candidates}, fewer than the {longest} items of the longest list in evaluate.k; set it to"
            f" {longest} or more, or to null for all items",
        )
