"""What models that propagate over the user-item graph share: the graph, the batch, the cache and extra loss terms."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.tables.table import Bags, Table
from recsys.bipartite import BipartiteGraph, Pair, Rows
from recsys.models.mf import LookUp, MatrixFactorization, Similarity
from recsys.propagation import Perturb, expand
from recsys.rng import torch_generator
from recsys.self_supervision import SelfSupervision, info_nce

Vectors = list[Pair]


class GraphModel(MatrixFactorization, abc.ABC):
    """Two tables whose vectors are propagated over the training graph before they are compared.

    A compressed table is looked up before propagation, which runs over all users and items. The final vectors are kept
    between evaluations until a table changes.

    Args:
        users: table of the users.
        items: table of the items, of the same dimension.
        layers: K, propagation layers.
        similarity: "dot", or "cosine": final vectors have length one.
        norm_exponent: p; under cosine an item is served with a vector of length |v|^p, v before it is normalised. The
            length of a propagated vector grows with the item's interactions, which its direction hardly tells. 0 serves
            the cosine that is trained, 1 the inner product.
        l2: weight of half the squared layer-0 vectors of a batch, by interaction (He et al. 2020, eq. 15).
        ssl: self-supervised term, or None.

    Raises:
        ValueError: A parameter is out of range.
    """

    mean_of_layers = True
    """Whether a final vector can be compared with that of a layer."""

    def __init__(
        self,
        users: Table,
        items: Table,
        *,
        layers: int = 3,
        similarity: Similarity = "dot",
        norm_exponent: float = 0.0,
        l2: float = 0.0,
        ssl: SelfSupervision | None = None,
    ) -> None:
        super().__init__(users, items, similarity=similarity)
        if layers < 0 or not l2 >= 0:
            raise ValueError(f"{type(self).__name__} needs layers >= 0 and l2 >= 0, got {layers} and {l2}")
        if not norm_exponent >= 0:
            raise ValueError(f"norm_exponent must be >= 0, got {norm_exponent}")
        if norm_exponent and similarity != "cosine":
            raise ValueError(f"norm_exponent is for similarity cosine, got {norm_exponent} with {similarity}")
        if ssl is not None and layers < max(1, ssl.layer):
            raise ValueError(f"ssl {ssl.name} needs at least {max(1, ssl.layer)} layers, got {layers}")
        self.layers = layers
        self.l2 = l2
        self.norm_exponent = norm_exponent
        self.ssl = ssl
        self._graph: BipartiteGraph | None = None
        self._everyone: dict[str, Bags] = {}
        self._final: Pair | None = None
        self._views: tuple[tuple[str | int, ...], list[BipartiteGraph]] = ((), [])
        for module in (self, users, items):
            module.register_load_state_dict_post_hook(lambda *_: self.forget())  # type: ignore[no-untyped-call]

    @property
    def with_ego(self) -> bool:
        """Whether layer 0 is part of the final vectors; SimGCL and XSimGCL leave it out."""
        return self.ssl is None or self.ssl.name == "sgl"

    @property
    def graph(self) -> BipartiteGraph:
        """The graph that vectors are propagated over.

        Raises:
            RuntimeError: There is none yet.
        """
        if self._graph is None:
            raise RuntimeError(f"{type(self).__name__} needs a graph, got none; call use_graph(train) or fit it first")
        return self._graph

    def use_graph(self, train: csr_array) -> None:
        """Propagate over the interactions of ``train`` [users, items] from now on.

        Raises:
            ValueError: The shape is not the model's.
        """
        expected = (self.num_users, self.num_items)
        if train.shape != expected:
            raise ValueError(f"the graph must have the model's shape {expected} (users, items), got {train.shape}")
        self.set_graph(BipartiteGraph.of(train))

    def set_graph(self, graph: BipartiteGraph) -> None:
        """Propagate over a graph that is there already."""
        self._graph = graph
        self._views = ((), [])
        self.forget()

    def forget(self) -> None:
        """Propagate again at the next evaluation; call it after writing to a table's weights."""
        self._final = None

    @abc.abstractmethod
    def propagated(
        self, ego: Pair, rows: Rows, graph: BipartiteGraph, views: tuple[Perturb | None, ...], taps: tuple[int, ...],
        dropout: torch.Generator | None,
    ) -> Vectors:  # fmt: skip
        """Final vectors of each view, then each tapped layer, at ``rows``.

        Args:
            ego: float32 [users + 1, D] and [items + 1, D], layer 0.
            rows: distinct nodes.
            graph: the graph, or a part of it.
            views: for each result the noise of its layers, or None.
            taps: layers of the first view.
            dropout: draws what is dropped, None outside training.
        """

    def look_up(
        self, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], seed: int, *counters: str | int
    ) -> LookUp:
        """See :meth:`MatrixFactorization.look_up`."""
        ego = self._ego("users", self.users), self._ego("items", self.items)
        ids, places = zip(*(np.unique(ids, return_inverse=True) for ids in (users, items)), strict=True)
        rows: Rows = (ids[0], ids[1])
        ssl = self.ssl
        taps: tuple[int, ...] = (0,) if self.l2 else ()
        views: tuple[Perturb | None, ...] = (None,)
        if ssl is not None:
            views = ssl.views(seed, *counters)
            if ssl.name == "xsimgcl":
                taps += (ssl.layer,) if self.mean_of_layers else (self.layers, ssl.layer)
        dropout = torch_generator(seed, "dropout", *counters)
        found = self.propagated(ego, rows, self.graph, views, taps, dropout)
        extras: list[Tensor] = []
        terms: list[tuple[int, Callable[[Sequence[Tensor]], Tensor]]] = []
        if self.l2:
            weights = [np.bincount(place, minlength=len(part)) for place, part in zip(places, ids, strict=True)]
            extras += found[len(views)]
            terms.append((2, _ridge(weights, self.l2 / len(users))))
        if ssl is not None:
            match ssl.name:
                case "simgcl":
                    compared = found[1:3]
                case "xsimgcl":
                    compared = [found[0] if self.mean_of_layers else found[-2], found[-1]]
                case "sgl":
                    graphs = self._dropped(seed, *counters[:2])
                    compared = [self.propagated(ego, rows, part, (None,), (), dropout)[0] for part in graphs]
            extras += [*compared[0], *compared[1]]
            chosen = np.arange(len(ids[0])), np.unique(places[1][: len(users)])
            terms.append((4, lambda views: ssl.weight * _contrast(views, chosen, ssl.temperature)))
        final = found[0]
        return LookUp(
            expand(final[0], places[0]), expand(final[1], places[1]), tuple(extras), _sum_of(terms) if terms else None
        )

    def _dropped(self, *name: str | int) -> list[BipartiteGraph]:
        """The two graphs of SGL for a seed, phase and epoch."""
        assert self.ssl is not None
        if self._views[0] != name:
            self._views = (name, self.ssl.dropped(self.graph, *name))
        return self._views[1]

    def step(self) -> None:
        """See :meth:`MatrixFactorization.step`."""
        super().step()
        self.forget()

    @torch.no_grad()
    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D], without gradient."""
        known = np.where((users >= 0) & (users < self.num_users), users, self.num_users)
        return self.represent(self._finals()[0][torch.from_numpy(known)])

    @torch.no_grad()
    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D], without gradient."""
        vectors = self.compared_items(items)
        if not self.norm_exponent:
            return vectors
        served: Tensor = vectors * self._raw_items(items).norm(dim=1, keepdim=True) ** self.norm_exponent
        return served

    @torch.no_grad()
    def compared_items(self, items: range) -> Tensor:
        """See :meth:`MatrixFactorization.compared_items`: ``norm_exponent`` has no part in them."""
        return self.represent(self._raw_items(items))

    def _raw_items(self, items: range) -> Tensor:
        ids = np.arange(items.start, items.stop, items.step)
        known = np.where((ids >= 0) & (ids < self.num_items), ids, self.num_items)
        return self._finals()[1][torch.from_numpy(known)]

    def _finals(self) -> Pair:
        if self._final is None:
            ego = self._ego("users", self.users), self._ego("items", self.items)
            found = self.propagated(ego, self.graph.all_rows(), self.graph, (None,), (), None)[0]
            self._final = (found[0].detach(), found[1].detach())
        return self._final

    def _ego(self, side: str, table: Table) -> Tensor:
        """Layer 0 of a side, float32 [N + 1, D], the unseen id last."""
        if side not in self._everyone:
            self._everyone[side] = table.bags(torch.arange(table.num_ids + 1))
        return table.pool(self._everyone[side])


def _ridge(counts: Sequence[npt.NDArray[np.int64]], weight: float) -> Callable[[Sequence[Tensor]], Tensor]:
    weights = [torch.from_numpy(count).float() for count in counts]

    def ridge(vectors: Sequence[Tensor]) -> Tensor:
        parts = [(w * part.square().sum(1)).sum() for w, part in zip(weights, vectors, strict=True)]
        return 0.5 * weight * (parts[0] + parts[1])

    return ridge


def _contrast(views: Sequence[Tensor], rows: Rows, temperature: float) -> Tensor:
    users, items = (torch.from_numpy(part) for part in rows)
    of_users = info_nce(views[0][users], views[2][users], temperature)
    return of_users + info_nce(views[1][items], views[3][items], temperature)


def _sum_of(terms: list[tuple[int, Callable[[Sequence[Tensor]], Tensor]]]) -> Callable[[Sequence[Tensor]], Tensor]:
    """The sum of terms, each of which takes the next so many tensors."""

    def total(tensors: Sequence[Tensor]) -> Tensor:
        values, start = [], 0
        for count, term in terms:
            values.append(term(tensors[start : start + count]))
            start += count
        return torch.stack(values).sum()

    return total
