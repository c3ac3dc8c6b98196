"""LightGCN on Gowalla, d = 64, 3 layers, batch 2048: products and steps against ``torch.sparse.mm`` and autograd.

The peer's step is written from the equations (He et al. 2020, eq. 7, 8 and 15): the whole normalised adjacency matrix
as a sparse tensor, the mean over layers, BPR, torch.optim.Adam. Both sides see the same batches, negatives and initial
weights.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import block_array, csr_array
from torch import Tensor
from torch.nn import functional

from benchmarks.bpr import DIM
from benchmarks.gowalla import gowalla
from benchmarks.harness import Row, finish, paired, probe, set_threads
from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from recsys.bipartite import BipartiteGraph
from recsys.losses import Loss
from recsys.models.lightgcn import LightGcn
from recsys.objective import Objective
from recsys.rng import generator
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order
from recsys.settings import FitSettings

LAYERS, L2, LR = 3, 1e-4, 1e-3
SETTINGS = FitSettings(Loss("bpr"), NegativeSampling(count=1, shared=False, reject_positives=True), batch_size=2048)
PEER = f"torch {torch.__version__.split('+')[0]}"


def run(scale: float = 1.0) -> int:
    """Time forward and backward of a product, and steps of an epoch; ``scale`` shortens both and the graph."""
    set_threads()
    train = gowalla("train")
    if scale < 1.0:
        train = csr_array(train[: max(100, int(train.shape[0] * scale))])
    repeats = 7 if scale == 1.0 else 1
    limit = probe(1.0).random_rows_per_s if scale == 1.0 else None
    return finish(
        "lightgcn", [_product_row(train, limit, repeats), _step_row(train, limit, repeats, scale)], scale=scale
    )


def _product_row(train: csr_array, limit: float | None, repeats: int) -> Row:
    graph, adjacency = BipartiteGraph.of(train), sparse_adjacency(train)
    sizes = train.shape[0] + 1, train.shape[1] + 1
    draws = torch.Generator().manual_seed(0)
    users, items, back_users, back_items = (torch.randn(n, DIM, generator=draws) for n in (*sizes, *sizes))
    whole = torch.cat([users[:-1], items[:-1]]).requires_grad_()
    back = torch.cat([back_users[:-1], back_items[:-1]])

    def ours() -> list[Tensor]:
        return [*graph.product((users, items)), *graph.product((back_users, back_items))]

    def theirs() -> list[Tensor]:
        out = torch.sparse.mm(adjacency, whole)
        return [out.detach(), *torch.autograd.grad(out, whole, back)]

    pairs = paired(ours, theirs, repeats=repeats)
    mine = torch.cat([part[:-1] for part in pairs.ours_last])
    difference = float((mine - torch.cat(pairs.theirs_last)).abs().max())
    case = f"product forward and backward, {2 * train.nnz:,} edges, d {DIM}"
    return Row.rate(
        case, f"{PEER} sparse.mm", pairs, work=4 * train.nnz, unit="rows/s", limit=limit, largest_difference=difference
    )


def _step_row(train: csr_array, limit: float | None, repeats: int, scale: float) -> Row:
    steps = max(2, round(20 * scale))
    objective = Objective(_model(train), train, SETTINGS, seed=0)
    steps = min(steps, objective.steps_per_epoch)
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}
    peer = PlainLightGcn(train, objective.steps_per_epoch)
    ours = (loss for epoch in itertools.count() for _, _, loss in objective.steps("select", epoch, 0))
    theirs = (loss for epoch in itertools.count() for loss in peer.steps(epoch))

    def job(name: str, step: Callable[[], float]) -> Callable[[], None]:
        def go() -> None:
            for _ in range(steps):
                losses[name].append(step())

        return go

    pairs = paired(
        job("ours", lambda: next(ours)), job("theirs", lambda: next(theirs)), repeats=repeats,
    )  # fmt: skip
    worst = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["theirs"], strict=True))
    case = f"{steps} steps of {SETTINGS.batch_size}, {LAYERS} layers, {train.nnz:,} interactions, d {DIM}"
    rows = steps * 2 * LAYERS * 2 * train.nnz
    return Row.rate(
        case, f"{PEER} plain LightGCN", pairs, work=rows, unit="rows/s", limit=limit,
        largest_relative_loss_difference=worst, our_seconds_per_epoch=pairs.ours / steps * objective.steps_per_epoch,
        their_seconds_per_epoch=pairs.theirs / steps * objective.steps_per_epoch,
    )  # fmt: skip


def _model(train: csr_array) -> LightGcn:
    users, items = (
        build_table(
            IdMap(np.arange(n, dtype=np.int64)[:, None], n + 1, n, "full"), DIM,
            optimizer=OptimizerSpec("adam", lr=LR), init_std=0.1, generator=generator(0, "init", side),
        )
        for side, n in zip(("users", "items"), train.shape, strict=True)
    )  # fmt: skip
    model = LightGcn(users, items, layers=LAYERS, l2=L2)
    model.use_graph(train)
    return model


def sparse_adjacency(train: csr_array) -> Tensor:
    """``D^-1/2 A D^-1/2`` [users + items, users + items] as a sparse CSR tensor."""
    whole = csr_array(block_array([[None, train], [train.T, None]]))
    root = 1.0 / np.sqrt(np.maximum(np.diff(whole.indptr), 1))
    values = (root[np.repeat(np.arange(len(root)), np.diff(whole.indptr))] * root[whole.indices]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        return torch.sparse_csr_tensor(
            torch.from_numpy(whole.indptr.astype(np.int64)), torch.from_numpy(whole.indices.astype(np.int64)),
            torch.from_numpy(values), size=whole.shape, check_invariants=True,
        )  # fmt: skip


class PlainLightGcn:
    """The peer: what one writes with torch alone."""

    def __init__(self, train: csr_array, steps_per_epoch: int) -> None:
        model = _model(train)
        self.num_users = train.shape[0]
        self.ego = torch.nn.Parameter(torch.cat([model.users.weight()[:-1], model.items.weight()[:-1]]))
        self.adjacency = sparse_adjacency(train)
        self.adam = torch.optim.Adam([self.ego], lr=LR)
        self.sampler = NegativeSampler(train, SETTINGS.negatives, seed=0)
        self.pairs = np.stack(train.nonzero(), axis=1).astype(np.int64)
        self.bounds = np.linspace(0, train.nnz, steps_per_epoch + 1).astype(np.int64)

    def steps(self, epoch: int) -> Iterator[float]:
        """The losses of an epoch, each before its update."""
        order = epoch_order(len(self.pairs), seed=0, phase="select", epoch=epoch)
        for step in range(len(self.bounds) - 1):
            yield self._step(self.pairs[order[self.bounds[step] : self.bounds[step + 1]]], epoch, step)

    def _step(self, batch: npt.NDArray[np.int64], epoch: int, step: int) -> float:
        drawn = self.sampler.draw(batch[:, 0], "select", epoch, step).items[:, 0]
        users, positives = torch.from_numpy(batch[:, 0]), torch.from_numpy(batch[:, 1]) + self.num_users
        negatives = torch.from_numpy(drawn) + self.num_users
        layers = [self.ego]
        for _ in range(LAYERS):
            layers.append(torch.sparse.mm(self.adjacency, layers[-1]))
        final = torch.stack(layers, 1).mean(1)
        margin = (final[users] * (final[positives] - final[negatives])).sum(1)
        touched = self.ego[users].square().sum() + self.ego[positives].square().sum()
        penalty = 0.5 * L2 * (touched + self.ego[negatives].square().sum()) / len(users)
        loss: Tensor = functional.softplus(-margin).mean() + penalty
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return float(loss.detach())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    sys.exit(run(parser.parse_args().scale))
