"""Self-supervised terms of graph models: two views of the same nodes must agree (SGL, SimGCL, XSimGCL)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recsys.bipartite import BipartiteGraph, Pair
from recsys.propagation import Perturb
from recsys.rng import generator

SslName = Literal["sgl", "simgcl", "xsimgcl"]


@dataclasses.dataclass(frozen=True)
class SelfSupervision:
    """A term ``weight * (InfoNCE of the batch's users + InfoNCE of its positive items)``.

    - ``sgl`` (Wu et al. 2021, SGL-ED): two graphs without a share of the edges, drawn again in each epoch.
    - ``simgcl`` (Yu et al. 2022): two propagations with noise in each layer; the mean leaves layer 0 out.
    - ``xsimgcl`` (Yu et al. 2023): one propagation with noise, which the loss sees too; its mean against one layer.

    Attributes:
        name: which of them.
        weight: of the term.
        temperature: divisor of the cosines.
        noise: length of the noise added to each vector of a layer.
        drop: share of the edges dropped, for SGL.
        layer: layer that XSimGCL compares with the mean.

    Raises:
        ValueError: A parameter is out of range.
    """

    name: SslName
    weight: float = 0.1
    temperature: float = 0.2
    noise: float = 0.1
    drop: float = 0.1
    layer: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.weight >= 0 and self.temperature > 0 and self.noise >= 0 and 0 <= self.drop < 1):
            raise ValueError(
                "ssl needs weight >= 0, temperature > 0, noise >= 0 and 0 <= drop < 1, got"
                f" {self.weight}, {self.temperature}, {self.noise} and {self.drop}"
            )
        if self.layer < 1:
            raise ValueError(f"ssl.layer must be at least 1, got {self.layer}")

    def views(self, seed: int, *counters: str | int) -> tuple[Perturb | None, ...]:
        """The noise of the propagations over the whole graph; the first one is what the loss sees."""
        match self.name:
            case "sgl":
                return (None,)
            case "simgcl":
                return None, *(_noise(self.noise, seed, view, *counters) for view in (1, 2))
            case "xsimgcl":
                return (_noise(self.noise, seed, 0, *counters),)

    def dropped(self, graph: BipartiteGraph, *name: str | int) -> list[BipartiteGraph]:
        """Two graphs without a share of the edges; ``name`` has the seed, the phase and the epoch."""
        draws = (generator(int(name[0]), "edge_dropout", view, *name[1:]).random(graph.num_edges) for view in (1, 2))
        return [graph.without(draw < self.drop) for draw in draws]


def info_nce(first_ND: Tensor, second_ND: Tensor, temperature: float) -> Tensor:
    """Mean of ``-ln(exp(cos(x_i, y_i) / t) / sum_j exp(cos(x_i, y_j) / t))`` (Yu et al. 2022, eq. 2).

    Args:
        first_ND: float [N, D].
        second_ND: float [N, D], other views of the same nodes.
        temperature: t > 0.
    """
    first, second = functional.normalize(first_ND), functional.normalize(second_ND)
    return functional.cross_entropy(first @ second.T / temperature, torch.arange(len(first)))


def _noise(length: float, seed: int, view: int, *counters: str | int) -> Perturb:
    """Random vectors of a length in the orthant of what they are added to (Yu et al. 2022, eq. 6 and 7)."""

    def perturb(layer: int, pair: Pair) -> Pair:
        rng = generator(seed, "noise", view, layer, *counters)
        noisy = []
        for vectors in pair:
            draw = torch.empty_like(vectors)
            rng.random(out=draw.numpy(), dtype="float32")
            noisy.append(vectors + length * functional.normalize(draw) * vectors.sign())
        return noisy[0], noisy[1]

    return perturb
