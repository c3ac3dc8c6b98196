"""The sequence models of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config_models import Mf
from pipelines.config_section import Section, Width
from pipelines.config_semantic import Features


class Bce(Section):
    """Binary cross-entropy against the negatives, 1 in the paper (Kang and McAuley 2018)."""

    name: Literal["bce"] = "bce"


class Gbce(Section):
    """Generalised binary cross-entropy of gSASRec (Petrov and Macdonald 2023)."""

    name: Literal["gbce"] = "gbce"
    calibration: float = Field(default=0.75, ge=0, le=1, description="t; 0 is bce, 1 calibrates the scores fully")


class Softmax(Section):
    """Cross-entropy over the whole catalogue."""

    name: Literal["softmax"] = "softmax"
    temperature: float = Field(default=1.0, gt=0)


class NegativesSoftmax(Section):
    """Softmax over the next item and the negatives."""

    name: Literal["sampled_softmax"] = "sampled_softmax"
    temperature: float = Field(default=1.0, gt=0)


SequenceLoss = Annotated[Bce | Gbce | Softmax | NegativesSoftmax, Field(discriminator="name")]


class Augmentation(Section):
    """Crops and shuffles of the sequences of a step (the SASRec++ of Lepage et al. 2025)."""

    crop: float = Field(default=0.0, ge=0, le=1, description="share of the sequences of which a random part is read")
    shuffle: float = Field(default=0.0, ge=0, le=1, description="share with a random part in a random order")


class Content(Section):
    """Items as their content, projected by a perceptron; ``optimizer.lr`` is that of its Adam."""

    features: tuple[Features, ...] = Field(min_length=1, description="as in semantic_ids")
    hidden: tuple[Width, ...] = Field(default=(), description="widths of the hidden layers")


class Sasrec(Mf):
    """Causal self-attention over the user's items (Kang and McAuley 2018); ``batch_size`` counts sequences."""

    name: Literal["sasrec"] = "sasrec"  # type: ignore[assignment]
    similarity: Literal["dot", "cosine"] = "dot"
    loss: SequenceLoss = NegativesSoftmax()  # type: ignore[assignment]
    init_std: float = Field(default=0.02, gt=0)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=1, ge=1, description="must divide dim")
    max_length: int = Field(default=50, ge=1, description="events that are read; older ones are left out")
    dropout: float = Field(default=0.2, ge=0, lt=1)
    dense_lr: float | None = Field(default=None, gt=0, description="of the encoder's Adam; null: optimizer.lr")
    augmentation: Augmentation = Augmentation()
    content: Content | None = Field(default=None, description="in place of the item table")

    @property
    def items_only(self) -> bool:
        """See :class:`TableModel`."""
        return True


class Hstu(Sasrec):
    """Gated pointwise attention with a bias by relative position and elapsed time (Zhai et al. 2024)."""

    name: Literal["hstu"] = "hstu"  # type: ignore[assignment]
    similarity: Literal["dot", "cosine"] = "cosine"
    loss: SequenceLoss = NegativesSoftmax(temperature=0.05)


SequenceModel = Sasrec | Hstu
