"""NGCF (Wang et al. 2019, "Neural graph collaborative filtering"), in the form of the paper."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.tables.table import Table
from recsys.bipartite import BipartiteGraph, Pair, Rows
from recsys.models.graph_model import GraphModel, Vectors
from recsys.models.mf import Similarity
from recsys.propagation import Perturb, product
from recsys.self_supervision import SelfSupervision

SLOPE = 0.2
_BETAS, _EPS = (0.9, 0.999), 1e-8


class Ngcf(GraphModel):
    r"""Propagation with two weight matrices a layer; the final vector is the concatenation of all layers.

    .. math:: E^{(k+1)} = LeakyReLU((\tilde A + I) E^{(k)} W_1 + (\tilde A E^{(k)} \odot E^{(k)}) W_2)

    (eq. 7, slope 0.2, symmetric normalisation, no bias). The matrices are trained by Adam with the learning rate of the
    users' table, whatever the tables' optimizer; ``l2`` is for the tables.

    Args:
        users: table of the users.
        items: table of the items, of the same dimension D.
        layers: K.
        similarity: "dot" or "cosine".
        l2: as in :class:`GraphModel`.
        ssl: as in :class:`GraphModel`; XSimGCL compares its layer with the last one.
        dropout: share of the numbers of each layer that a training step sets to zero ("message dropout").
        generator: draws the initial matrices, Xavier uniform.

    Raises:
        ValueError: A parameter is out of range.
    """

    mean_of_layers = False

    def __init__(
        self,
        users: Table,
        items: Table,
        *,
        layers: int = 3,
        similarity: Similarity = "dot",
        l2: float = 0.0,
        ssl: SelfSupervision | None = None,
        dropout: float = 0.1,
        generator: np.random.Generator,
    ) -> None:
        super().__init__(users, items, layers=layers, similarity=similarity, l2=l2, ssl=ssl)
        if not 0 <= dropout < 1:
            raise ValueError(f"Ngcf needs 0 <= dropout < 1, got {dropout}")
        self.dropout = dropout
        shape, bound = (layers, 2, users.dim, users.dim), math.sqrt(3 / users.dim)
        drawn = generator.uniform(-bound, bound, shape).astype(np.float32)
        self.mixers = nn.Parameter(torch.from_numpy(drawn))
        self.register_buffer("mixers_avg", torch.zeros(shape))
        self.register_buffer("mixers_avg_sq", torch.zeros(shape))
        self.register_buffer("mixers_steps", torch.tensor(0))

    mixers_avg: Tensor
    mixers_avg_sq: Tensor
    mixers_steps: Tensor

    def propagated(
        self, ego: Pair, rows: Rows, graph: BipartiteGraph, views: tuple[Perturb | None, ...], taps: tuple[int, ...],
        dropout: torch.Generator | None,
    ) -> Vectors:  # fmt: skip
        """See :meth:`GraphModel.propagated`."""
        finals, tapped = [], []
        for view, perturb in enumerate(views):
            layers = self._layers(ego, rows, graph, perturb, dropout)
            kept = layers if self.with_ego else layers[1:]
            finals.append((torch.cat([pair[0] for pair in kept], 1), torch.cat([pair[1] for pair in kept], 1)))
            if view == 0:
                tapped = [layers[layer] for layer in taps]
        return finals + tapped

    def _layers(
        self, ego: Pair, rows: Rows, graph: BipartiteGraph, perturb: Perturb | None, dropout: torch.Generator | None
    ) -> list[Pair]:
        """Layers 0 to K at ``rows``; the last one is made there only."""
        layers, whole = [_at(ego, rows)], ego
        for layer in range(1, self.layers + 1):
            last = layer == self.layers
            around = product(*whole, graph, rows if last else None)
            centre = _at(whole, rows) if last else whole
            sides = (self._mix(layer - 1, *pair, dropout) for pair in zip(around, centre, strict=True))
            users, items = sides
            whole = (users, items) if perturb is None else perturb(layer, (users, items))
            layers.append(whole if last else _at(whole, rows))
        return layers

    def _mix(self, layer: int, around: Tensor, centre: Tensor, dropout: torch.Generator | None) -> Tensor:
        first, second = self.mixers[layer]
        mixed = functional.leaky_relu((around + centre) @ first + (around * centre) @ second, SLOPE)
        if dropout is None or self.dropout == 0:
            return mixed
        keep = torch.rand(mixed.shape, generator=dropout) >= self.dropout
        return mixed * keep / (1 - self.dropout)

    def step(self) -> None:
        """Apply the gradients to the tables, and to the matrices by Adam (Kingma and Ba 2015, algorithm 1)."""
        super().step()
        gradient = self.mixers.grad
        if gradient is None:
            return
        self.mixers.grad = None
        with torch.no_grad():
            self.mixers_steps += 1
            t = int(self.mixers_steps)
            self.mixers_avg.lerp_(gradient, 1 - _BETAS[0])
            self.mixers_avg_sq.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            root = (self.mixers_avg_sq / (1 - _BETAS[1] ** t)).sqrt_().add_(_EPS)
            self.mixers.addcdiv_(self.mixers_avg, root, value=-self.users.optimizer.lr / (1 - _BETAS[0] ** t))


def _at(pair: Pair, rows: Rows) -> Pair:
    return pair[0][torch.from_numpy(rows[0])], pair[1][torch.from_numpy(rows[1])]
