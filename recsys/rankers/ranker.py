"""What every ranker offers, and how the pieces of one are described."""

from __future__ import annotations

import abc
import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embeddings.tables.collection import TableCollection
from recsys.event_batch import EventBatch, Events
from recsys.rankers.fused import Perceptron

SCORED_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True)
class Tower:
    """A multi-layer perceptron.

    Attributes:
        hidden: widths of the layers.
        dropout: share of the activations that a training step sets to 0, after each layer.
        batch_norm: whether layers are normalised over the batch (Ioffe and Szegedy 2015) before their ReLU.
    """

    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.0
    batch_norm: bool = False


class FieldModel(nn.Module):
    """Tables of categorical fields, and the noise of the layers above them.

    Args:
        tables: one for each categorical field.
        num_dense: numeric fields, N.

    Attributes:
        noise: the generator of every dropout; the training seeds it before each step.
    """

    def __init__(self, tables: TableCollection, num_dense: int) -> None:
        super().__init__()
        self.tables = tables
        self.num_dense = num_dense
        self.noise = torch.Generator()

    @property
    def width(self) -> int:
        """Numbers of all vectors and the numeric fields, one after the other."""
        return sum(self.tables.dims) + self.num_dense


class Ranker(FieldModel, abc.ABC):
    """Log-odds of the label 1 from the vectors of an event's fields and its numbers."""

    def logits(self, batch: EventBatch) -> Tensor:
        """Log-odds float32 [B].

        Raises:
            ValueError: The batch has another number of categorical or numeric fields.
        """
        self.check(batch)
        return self.combine(self.tables(batch.ids), batch.dense)

    def check(self, batch: EventBatch) -> None:
        """Refuse a batch with another number of numeric fields.

        Raises:
            ValueError: It has.
        """
        if batch.dense.shape[1] != self.num_dense:
            raise ValueError(f"the ranker takes {self.num_dense} numeric fields, got {batch.dense.shape[1]}")

    @abc.abstractmethod
    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """Log-odds [B] from the fields' vectors side by side, [B, sum of D_f], and the numeric fields [B, N]."""

    @torch.no_grad()
    def scores(self, events: Events) -> npt.NDArray[np.float32]:
        """Log-odds float32 [E] in evaluation mode; a score does not depend on the events around it."""
        was_training = self.training
        self.eval()
        out = np.empty(len(events), np.float32)
        for start in range(0, len(events), SCORED_AT_ONCE):
            part = slice(start, min(start + SCORED_AT_ONCE, len(events)))
            out[part] = self.logits(events.batch(part)).numpy()
        self.train(was_training)
        return out

    def equal_dims(self) -> int:
        """The one dimension of all fields.

        Raises:
            ValueError: Fields differ, and the model takes inner products between them.
        """
        dims = {field.name: field.dim for field in self.tables.fields}
        if len(set(dims.values())) > 1:
            raise ValueError(f"{type(self).__name__} multiplies fields and needs one dim for all of them, got {dims}")
        return self.tables.dims[0]


def beside(vectors: Tensor, dense_BN: Tensor) -> Tensor:
    """Vectors and numeric fields side by side, without a copy where there are no numbers."""
    return torch.cat([vectors, dense_BN], dim=1) if dense_BN.shape[1] else vectors


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose masks come from a given generator, so that a resume draws them again."""

    def __init__(self, share: float, noise: torch.Generator) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {share}")
        self.share = share
        self.noise = noise

    def forward(self, values: Tensor) -> Tensor:
        """Values of the same shape; the kept ones are divided by the share that is kept."""
        if not self.training or self.share == 0:
            return values
        keep = torch.empty_like(values).bernoulli_(1 - self.share, generator=self.noise)
        return values * keep.div_(1 - self.share)


def perceptron(width: int, tower: Tower, noise: torch.Generator, *, out: int | None = None) -> nn.Sequential:
    """Layers of a tower: linear, batch norm, ReLU, dropout; ``out`` adds a last linear layer of that width."""
    layers: list[nn.Module] = []
    for hidden in tower.hidden:
        layers.append(nn.Linear(width, hidden))
        layers += [nn.BatchNorm1d(hidden)] if tower.batch_norm else []
        layers.append(nn.ReLU())
        layers += [Dropout(tower.dropout, noise)] if tower.dropout else []
        width = hidden
    if out is not None:
        layers.append(nn.Linear(width, out))
    return Perceptron(*layers)


def out_width(width: int, tower: Tower) -> int:
    """What :func:`perceptron` gives without ``out``."""
    return tower.hidden[-1] if tower.hidden else width


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Xavier-normal weights (Glorot and Bengio 2010) and zero biases for every linear layer inside."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
