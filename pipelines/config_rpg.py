"""The retriever of a configuration that predicts long semantic ids in parallel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.config_problems import Finding
from pipelines.config_section import EpochModel, Optimizer
from pipelines.config_sequence import Augmentation, Sasrec

if TYPE_CHECKING:
    from pipelines.config import Experiment, Train, Variant


class Rpg(EpochModel):
    """Causal self-attention that predicts all digits of ``semantic_ids`` at once (Hou et al. 2025)."""

    name: Literal["rpg"] = "rpg"
    dim: int = Field(default=128, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1, description="of the attention; must divide dim")
    max_length: int = Field(default=50, ge=1, description="events that are read; older ones are left out")
    dropout: float = Field(default=0.4, ge=0, lt=1)
    temperature: float = Field(default=0.03, gt=0, description="of the cosines of heads and tokens")
    init_std: float = Field(default=0.02, gt=0)
    optimizer: Optimizer = Optimizer()
    augmentation: Augmentation = Augmentation()


def check_rpg(experiment: Experiment, variant: Variant) -> Iterator[Finding]:
    """Yield the key and the message of every rule that a variant with :class:`Rpg` breaks."""
    model = variant.model
    assert isinstance(model, Rpg)
    if experiment.semantic_ids is None:
        yield ("model", "name"), "rpg predicts semantic ids: add a section `semantic_ids`, with the tokeniser opq"
    yield from check_reader(model, variant.train)


def check_reader(model: Sasrec | Rpg, train: Train) -> Iterator[Finding]:
    """Likewise of every model that a causal encoder reads sequences for."""
    if model.dim % model.heads:
        yield ("model", "heads"), f"heads must divide dim, got {model.heads} heads for dim {model.dim}"
    if train.precision != "float32":
        yield ("train", "precision"), f"sequence models train in float32, got {train.precision!r}"
    if train.positives != "interactions":
        yield ("train", "positives"), f"sequence models read every user once an epoch, got {train.positives!r}"
    if train.lr_decay != 1:
        yield ("train", "lr_decay"), f"sequence models keep their learning rate, got {train.lr_decay}; set it to 1"
