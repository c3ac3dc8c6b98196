"""LightGCN (He et al. 2020, "LightGCN: Simplifying and powering graph convolution network for recommendation")."""

from __future__ import annotations

import torch

from recsys.bipartite import BipartiteGraph, Pair, Rows
from recsys.models.graph_model import GraphModel, Vectors
from recsys.propagation import Perturb, Plan, propagate


class LightGcn(GraphModel):
    r"""The mean over layers of the neighbours' normalised sums; only layer 0 is trained.

    .. math:: E^{(k+1)} = \tilde A E^{(k)}, \qquad E = \frac{1}{K + 1} \sum_{k=0}^{K} E^{(k)}

    (eq. 7 and 8). See :class:`recsys.models.graph_model.GraphModel` for the parameters.
    """

    def propagated(
        self, ego: Pair, rows: Rows, graph: BipartiteGraph, views: tuple[Perturb | None, ...], taps: tuple[int, ...],
        dropout: torch.Generator | None,
    ) -> Vectors:  # fmt: skip
        """See :meth:`GraphModel.propagated`; nothing is dropped."""
        return propagate(*ego, Plan(graph, self.layers, self.with_ego, rows, views, taps))
