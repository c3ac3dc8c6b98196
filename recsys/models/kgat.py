"""KGAT (Wang et al. 2019, "KGAT: Knowledge graph attention network for recommendation")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.tables import look_up, step_all
from embeddings.tables.addresses import Longs
from embeddings.tables.table import Table
from recsys.bipartite import BipartiteGraph, Pair, Rows
from recsys.dense_adam import DenseAdam
from recsys.knowledge_graph import CollaborativeGraph
from recsys.models.graph_model import GraphModel, Vectors
from recsys.models.mf import Similarity
from recsys.models.ngcf import SLOPE
from recsys.models.transr import TransR
from recsys.propagation import Perturb, expand
from recsys.sparse_product import SparseMatrix, sparse_product


class Kgat(GraphModel):
    r"""Propagation over interactions and knowledge, each edge as strong as the attention that it gets.

    .. math:: e_{N_h} = \sum_{(h, r, t)} \pi(h, r, t)\, e_t, \qquad
              e_h' = LeakyReLU((e_h + e_{N_h}) W_1) + LeakyReLU((e_h \odot e_{N_h}) W_2)

    (eq. 3, 5 and 8, slope 0.2, no bias). A final vector is layer 0 and the other layers, each of length one, side by
    side (eq. 11). The attention is a function of the current tables and relations that :meth:`refresh` evaluates; no
    gradient flows through it.

    Args:
        users: table of the users.
        items: table of the items, of the same dimension D.
        knowledge: the knowledge graph and what is learned of it.
        widths: dimension of each layer after layer 0.
        similarity: "dot" or "cosine".
        l2: as in :class:`GraphModel`; for the vectors of a batch of triples too.
        dropout: share of the numbers of each layer that a training step sets to zero ("message dropout").
        generator: draws the initial matrices, Xavier uniform.

    Raises:
        ValueError: A parameter is out of range, or the knowledge graph has other items or another dimension.
    """

    mean_of_layers = False

    def __init__(
        self,
        users: Table,
        items: Table,
        knowledge: TransR,
        *,
        widths: Sequence[int] = (64, 32, 16),
        similarity: Similarity = "dot",
        l2: float = 0.0,
        dropout: float = 0.1,
        generator: np.random.Generator,
    ) -> None:
        super().__init__(users, items, layers=len(widths), similarity=similarity, l2=l2)
        if not 0 <= dropout < 1 or any(width < 1 for width in widths):
            raise ValueError(f"Kgat needs 0 <= dropout < 1 and widths >= 1, got {dropout} and {list(widths)}")
        if knowledge.graph.num_items != items.num_ids or knowledge.entities.dim != items.dim:
            raise ValueError(
                f"Kgat needs knowledge of its {items.num_ids:,} items in {items.dim} dimensions,"
                f" got {knowledge.graph.num_items:,} items in {knowledge.entities.dim}"
            )
        self.knowledge = knowledge
        self.widths = tuple(widths)
        self.dropout = dropout
        self.mixers = nn.ParameterList(
            nn.Parameter(torch.from_numpy(generator.uniform(-bound, bound, (2, last, width)).astype(np.float32)))
            for last, width in zip((users.dim, *widths), widths, strict=False)
            for bound in [math.sqrt(6 / (last + width))]
        )
        self.adam = DenseAdam({f"mixers_{layer}": mixer for layer, mixer in enumerate(self.mixers)}, users.optimizer.lr)
        self._collaborative: CollaborativeGraph | None = None
        self._attention: tuple[Tensor, SparseMatrix] | None = None
        for module in (self, users, items, knowledge, knowledge.entities):
            module.register_load_state_dict_post_hook(lambda *_: self.forget_attention())  # type: ignore[no-untyped-call]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Users, items and the other entities."""
        return self.users, self.items, self.knowledge.entities

    @property
    def collaborative(self) -> CollaborativeGraph:
        """Interactions and knowledge together.

        Raises:
            RuntimeError: There is no graph of interactions yet.
        """
        if self._collaborative is None:
            self._collaborative = CollaborativeGraph.of(self.graph, self.knowledge.graph)
        return self._collaborative

    @property
    def attention(self) -> Tensor:
        """Float32 [E] of the edges of ``collaborative``, as the last :meth:`refresh` found it."""
        return self._attended()[0]

    def refresh(self) -> None:
        """Find the attention anew from the current tables and relations."""
        with torch.no_grad():
            vectors = self._nodes(self._ego("users", self.users), self._ego("items", self.items))
            self.use_attention(self.knowledge.attention(vectors, self.collaborative))

    def use_attention(self, attention: Tensor) -> None:
        """Propagate with an attention that is known, float32 [E]."""
        graph = self.collaborative
        nodes = (graph.num_nodes, graph.num_nodes)
        self._attention = attention, SparseMatrix.of(graph.heads, graph.tails, attention.numpy(), nodes)
        self.forget()

    def forget_attention(self) -> None:
        """Find the attention anew where it is needed next; call it after writing to weights."""
        self._attention = None
        self.forget()

    def set_graph(self, graph: BipartiteGraph) -> None:
        """See :meth:`GraphModel.set_graph`."""
        super().set_graph(graph)
        self._collaborative = None
        self.forget_attention()

    def propagated(
        self, ego: Pair, rows: Rows, graph: BipartiteGraph, views: tuple[Perturb | None, ...], taps: tuple[int, ...],
        dropout: torch.Generator | None,
    ) -> Vectors:  # fmt: skip
        """See :meth:`GraphModel.propagated`; ``graph`` is that of :meth:`use_graph`, there are no noisy views."""
        first_item = self.num_users + 1
        wanted = np.concatenate([rows[0], first_item + rows[1]])
        whole = self._nodes(*ego)
        at = torch.from_numpy(wanted)
        layers, final, matrix = [whole[at]], [whole[at]], self._attended()[1]
        for layer in range(self.layers):
            last = layer == self.layers - 1
            around = sparse_product(matrix, whole, wanted if last else None)
            whole = self._mix(layer, around, whole[at] if last else whole, dropout)
            layers.append(whole if last else whole[at])
            final.append(functional.normalize(layers[-1]))
        pairs = [torch.cat(final, 1), *(layers[tap] for tap in taps)]
        return [(part[: len(rows[0])], part[len(rows[0]) :]) for part in pairs]

    def _mix(self, layer: int, around: Tensor, centre: Tensor, dropout: torch.Generator | None) -> Tensor:
        first, second = self.mixers[layer]
        mixed = functional.leaky_relu((centre + around) @ first, SLOPE)
        mixed = mixed + functional.leaky_relu((centre * around) @ second, SLOPE)
        if dropout is None or self.dropout == 0:
            return mixed
        keep = torch.rand(mixed.shape, generator=dropout) >= self.dropout
        return mixed * keep / (1 - self.dropout)

    def knowledge_loss(self, edges: Longs, others: Longs, clip_norm: float | None = None) -> Tensor:
        """TransR's loss of some edges of ``collaborative``, differentiable in tables and relations.

        Args:
            edges: int64 [B].
            others: int64 [B], nodes in the place of their tails.
            clip_norm: bound on the norm of the gradient by the vectors of the nodes, all of them together.
        """
        graph = self.collaborative
        edges = edges[(by_relation := np.argsort(graph.relations[edges], kind="stable"))]
        nodes, places = np.unique([graph.heads[edges], graph.tails[edges], others[by_relation]], return_inverse=True)
        vectors = self._look_up_nodes(nodes)
        if clip_norm is not None:
            vectors.register_hook(lambda grad: grad * (clip_norm / (grad.norm() + 1e-6)).clamp(max=1.0))  # type: ignore[no-untyped-call]
        head, tail, other = (expand(vectors, place) for place in places.reshape(3, -1))
        loss = self.knowledge.loss(head, tail, other, graph.relations[edges])
        if self.l2:
            loss = loss + 0.5 * self.l2 * sum(part.square().sum() for part in (head, tail, other)) / len(edges)
        return loss

    def set_lr(self, lr: float) -> None:
        """See :meth:`TwoTables.set_lr`; of relations and matrices, too."""
        super().set_lr(lr)
        self.adam.lr = self.knowledge.adam.lr = lr

    def step(self) -> None:
        """Apply the gradients to the tables, and to relations and matrices by Adam."""
        step_all(self.tables)
        self.adam.step()
        self.knowledge.adam.step()
        self.forget()

    def _attended(self) -> tuple[Tensor, SparseMatrix]:
        """The attention, and the matrix that it weighs."""
        if self._attention is None:
            self.refresh()
        assert self._attention is not None
        return self._attention

    def _nodes(self, users: Tensor, items: Tensor) -> Tensor:
        """Layer 0 of all nodes, float32 [N, D]."""
        if "entities" not in self._everyone:
            self._everyone["entities"] = self.knowledge.entities.bags(torch.arange(self.knowledge.entities.num_ids))
        return torch.cat([users, items, self.knowledge.entities.pool(self._everyone["entities"])])

    def _look_up_nodes(self, nodes: Longs) -> Tensor:
        """Layer 0 of ``nodes``, ascending: float32 [n, D]."""
        first = np.array([0, self.num_users + 1, self.num_users + self.num_items + 2])
        bounds = [0, *np.searchsorted(nodes, first[1:]).tolist(), len(nodes)]
        ids = [torch.from_numpy(nodes[bounds[side] : bounds[side + 1]] - first[side]) for side in range(3)]
        return torch.cat(look_up(self.tables, ids))
