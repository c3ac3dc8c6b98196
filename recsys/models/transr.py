"""TransR (Lin et al. 2015): entities and relations as vectors, each relation with a projection of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.tables.addresses import Longs
from embeddings.tables.table import Table
from recsys.dense_adam import DenseAdam
from recsys.knowledge_graph import CollaborativeGraph, KnowledgeGraph

_EDGES_AT_ONCE = 1 << 17


class TransR(nn.Module):
    r"""What is learned of a knowledge graph beside the vectors of users and items.

    .. math:: g(h, r, t) = \lVert W_r e_h + e_r - W_r e_t \rVert^2

    (Wang et al. 2019, eq. 1), low for triples that hold. Relations are those of :class:`CollaborativeGraph`. Their
    parameters are trained by Adam with the learning rate of the entities' table.

    Args:
        entities: table of the entities that are not items, of dimension D.
        graph: the triples.
        generator: draws the relations' parameters, Xavier uniform.

    Raises:
        ValueError: The table is not one of these entities.
    """

    def __init__(self, entities: Table, graph: KnowledgeGraph, *, generator: np.random.Generator) -> None:
        super().__init__()
        others = graph.num_entities - graph.num_items
        if entities.num_ids != others:
            raise ValueError(
                f"the entities' table must have the {others:,} entities that are no items, got {entities.num_ids:,}"
            )
        self.entities = entities
        self.graph = graph
        relations, dim = 2 * (graph.num_relations + 1), entities.dim
        bound = math.sqrt(3 / dim)
        self.translations = nn.Parameter(_uniform(generator, (relations, dim), bound))
        self.projections = nn.Parameter(_uniform(generator, (relations, dim, dim), bound))
        parameters = {"translations": self.translations, "projections": self.projections}
        self.adam = DenseAdam(parameters, entities.optimizer.lr)

    def loss(self, heads_BD: Tensor, tails_BD: Tensor, others_BD: Tensor, relations: Longs) -> Tensor:
        r"""Mean of :math:`-\ln \sigma(g(h, r, t') - g(h, r, t))` (Wang et al. 2019, eq. 2).

        Args:
            heads_BD: float [B, D].
            tails_BD: float [B, D], of triples that hold.
            others_BD: float [B, D], tails of triples that do not.
            relations: int64 [B], ascending.
        """
        projections, translations, gaps = self.projections.unbind(), self.translations.unbind(), []
        values, sizes = np.unique(relations, return_counts=True)
        true, false = (torch.split(heads_BD - ends, sizes.tolist()) for ends in (tails_BD, others_BD))
        for place, relation in enumerate(values.tolist()):
            moved = torch.cat([true[place], false[place]]) @ projections[relation] + translations[relation]
            energy = moved.square().sum(1)
            gaps.append(energy[: len(true[place])] - energy[len(true[place]) :])
        return functional.softplus(torch.cat(gaps)).mean()

    @torch.no_grad()
    def attention(self, vectors: Tensor, graph: CollaborativeGraph) -> Tensor:
        r"""How much of a tail's vector flows to the head, a softmax over the edges of each head.

        .. math:: \pi(h, r, t) = (W_r e_t)^T \tanh(W_r e_h + e_r)

        (Wang et al. 2019, eq. 4 and 5).

        Args:
            vectors: float32 [N, D] of all nodes.
            graph: the edges.

        Returns:
            Float32 [E].
        """
        logits = torch.empty(graph.num_edges)
        order = np.argsort(graph.relations, kind="stable")
        for relation, part in _groups(graph.relations[order]):
            for first in range(part.start, part.stop, _EDGES_AT_ONCE):
                edges = order[first : min(first + _EDGES_AT_ONCE, part.stop)]
                (head, head_of), (tail, tail_of) = (
                    np.unique(ends[edges], return_inverse=True) for ends in (graph.heads, graph.tails)
                )
                moved = torch.tanh(vectors[head] @ self.projections[relation] + self.translations[relation])
                drawn = vectors[tail] @ self.projections[relation]
                logits[edges] = (drawn[tail_of] * moved[head_of]).sum(1)
        return torch.from_numpy(_softmax_by(graph.heads, logits.numpy()))


def _groups(ascending: Longs) -> Iterator[tuple[int, slice]]:
    """Each value with its span."""
    values, starts = np.unique(ascending, return_index=True)
    for value, start, stop in zip(
        values.tolist(), starts.tolist(), [*starts.tolist()[1:], len(ascending)], strict=True
    ):
        yield value, slice(start, stop)


def _softmax_by(ascending: Longs, logits: np.ndarray) -> np.ndarray:
    """Softmax over the entries of each value, float32; the sums are made in float64."""
    if not len(ascending):
        return logits
    _, starts, of = np.unique(ascending, return_index=True, return_inverse=True)
    powers = np.exp(logits - np.maximum.reduceat(logits, starts)[of], dtype=np.float64)
    shares: np.ndarray = (powers / np.add.reduceat(powers, starts)[of]).astype(np.float32)
    return shares


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], bound: float) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(generator.uniform(-bound, bound, shape).astype(np.float32)))
