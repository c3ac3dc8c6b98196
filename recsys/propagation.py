"""Linear propagation over the user-item graph with its own backward (He et al. 2020, LightGCN).

What a step does not need is not computed: the last layer is made for the rows of the batch only, the gradient starts
from these rows, and everything that depends on the tables by the same linear map shares one backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embeddings.tables.addresses import Longs
from embeddings.tables.kernels import pool_rows
from recsys.bipartite import BipartiteGraph, Pair, Rows

Perturb = Callable[[int, Pair], Pair]
"""Adds noise to the vectors of a layer, 1-based: (layer, vectors) -> vectors, as if the noise were constant."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is propagated, and which rows of the result are wanted.

    Attributes:
        graph: with ``users + 1`` and ``items + 1`` nodes.
        layers: K.
        with_ego: the final vector is the mean of layers 0 to K, otherwise of 1 to K.
        rows: distinct nodes whose vectors are wanted.
        views: for each result its noise; None for a result without.
        taps: layers of the first view whose vectors are wanted too.
    """

    graph: BipartiteGraph
    layers: int
    with_ego: bool
    rows: Rows
    views: tuple[Perturb | None, ...] = (None,)
    taps: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """One over the number of layers in the mean."""
        return 1.0 / (self.layers + self.with_ego)


def propagate(users: Tensor, items: Tensor, plan: Plan) -> list[Pair]:
    """Final vectors of each view, then the vectors of each tapped layer, at ``plan.rows``.

    Args:
        users: float32 [users + 1, D], layer 0, the unseen user last.
        items: float32 [items + 1, D].
        plan: what to do.

    Returns:
        Pairs of float32 [rows, D], differentiable in ``users`` and ``items``.
    """
    flat = _Propagate.apply(users, items, plan)  # type: ignore[no-untyped-call]
    return list(zip(flat[::2], flat[1::2], strict=True))


def expand(compact: Tensor, places: Longs) -> Tensor:
    """``compact[places]``: float32 [n, D] from [m, D]; the gradient is summed in the order of the places."""
    expanded: Tensor = _Expand.apply(compact, places)  # type: ignore[no-untyped-call]
    return expanded


def product(users: Tensor, items: Tensor, graph: BipartiteGraph, rows: Rows | None = None) -> Pair:
    """``A x``, at ``rows`` (distinct) only where they are given; differentiable in ``users`` and ``items``."""
    found: Pair = _Product.apply(users, items, graph, rows)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    """The autograd node of :func:`product`: the matrix is symmetric, so backward multiplies by it too."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, graph: BipartiteGraph, rows: Rows | None) -> Pair:
        """A pair."""
        ctx.graph, ctx.rows = graph, rows
        pair = (users.detach(), items.detach())
        return graph.product(pair) if rows is None else graph.product_rows(pair, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """A pair, and nothing for the graph."""
        pair = (users, items)
        back = ctx.graph.product(pair) if ctx.rows is None else ctx.graph.product_of_rows(pair, ctx.rows)
        return *back, None, None


class _Propagate(torch.autograd.Function):
    """The autograd node of :func:`propagate`."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, plan: Plan) -> tuple[Tensor, ...]:
        """Flat pairs."""
        ctx.plan = plan
        ego = (users.detach(), items.detach())
        finals, taps = [], []
        for view, perturb in enumerate(plan.views):
            wanted = plan.taps if view == 0 else ()
            if perturb is None and all(layer == 0 for layer in wanted):
                final, found = _mean_by_horner(ego, plan), [_select(ego, plan.rows)] * len(wanted)
            else:
                final, found = _mean_by_layer(ego, plan, perturb, wanted)
            finals.append(final)
            taps += found
        return tuple(part for pair in [*finals, *taps] for part in pair)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *flat: Tensor) -> tuple[Tensor, Tensor, None]:
        """``sum_k A^k g_k`` by Horner's rule, g_k the gradient of layer k."""
        plan: Plan = ctx.plan
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        finals, taps = pairs[: len(plan.views)], pairs[len(plan.views) :]
        mean = _total(finals)
        scaled = (mean[0] * plan.scale, mean[1] * plan.scale)

        def gradient_of(layer: int) -> Pair:
            parts = [scaled] if layer > 0 or plan.with_ego else []
            parts += [tap for wanted, tap in zip(plan.taps, taps, strict=True) if wanted == layer]
            return _total(parts) if parts else (torch.zeros_like(scaled[0]), torch.zeros_like(scaled[1]))

        last = gradient_of(plan.layers)
        if plan.layers == 0:
            users, items = (torch.zeros(len(part), last[0].shape[1]) for part in plan.graph.all_rows())
            return *_add_at((users, items), last, plan.rows), None
        total = _add_at(plan.graph.product_of_rows(last, plan.rows), gradient_of(plan.layers - 1), plan.rows)
        for layer in range(plan.layers - 2, -1, -1):
            total = _add_at(plan.graph.product(total), gradient_of(layer), plan.rows)
        return *total, None


def _mean_by_horner(ego: Pair, plan: Plan) -> Pair:
    """``(1 + A (1 + A (1 + ...))) x``: no layer is kept."""
    if plan.layers == 0:
        return _select(ego, plan.rows)
    inner = ego
    for _ in range(plan.layers - 1):
        inner = plan.graph.product(inner, base=ego)
    final = plan.graph.product_rows(inner, plan.rows)
    if plan.with_ego:
        final = _total([final, _select(ego, plan.rows)])
    return final[0] * plan.scale, final[1] * plan.scale


def _mean_by_layer(ego: Pair, plan: Plan, perturb: Perturb | None, wanted: tuple[int, ...]) -> tuple[Pair, list[Pair]]:
    """The mean with noise in every layer, and the layers that are ``wanted``."""
    layers = {0: _select(ego, plan.rows)}
    whole = ego
    for layer in range(1, plan.layers + 1):
        if layer < plan.layers:
            whole = plan.graph.product(whole)
            whole = perturb(layer, whole) if perturb else whole
            layers[layer] = _select(whole, plan.rows)
        else:
            part = plan.graph.product_rows(whole, plan.rows)
            layers[layer] = perturb(layer, part) if perturb else part
    mean = _total([pair for layer, pair in layers.items() if layer > 0 or plan.with_ego])
    return (mean[0] * plan.scale, mean[1] * plan.scale), [layers[layer] for layer in wanted]


def _select(pair: Pair, rows: Rows) -> Pair:
    return pair[0][torch.from_numpy(rows[0])], pair[1][torch.from_numpy(rows[1])]


def _total(pairs: Sequence[Pair]) -> Pair:
    users, items = pairs[0]
    for more_users, more_items in pairs[1:]:
        users, items = users + more_users, items + more_items
    return users, items


def _add_at(total: Pair, pair: Pair, rows: Rows) -> Pair:
    for whole, part, at in zip(total, pair, rows, strict=True):
        whole.numpy()[at] += part.numpy()
    return total


class _Expand(torch.autograd.Function):
    """The autograd node of :func:`expand`."""

    @staticmethod
    def forward(ctx: Any, compact: Tensor, places: Longs) -> Tensor:
        """Float32 [n, D]."""
        ctx.places, ctx.count = places, len(compact)
        return compact[torch.from_numpy(places)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sums by place."""
        order = np.argsort(ctx.places, kind="stable").astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(ctx.places, minlength=ctx.count))]).astype(np.int64)
        out = torch.empty(ctx.count, gradient.shape[1])
        pool_rows(gradient.contiguous().numpy(), order, starts, out.numpy())
        return out, None
