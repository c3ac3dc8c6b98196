"""What sparse tables cost in time: steps of matrix factorisation on Gowalla, and the updates of the mask.

Sampled softmax over 256 shared negatives, batches of 4,096, row-wise Adagrad, d 64. The peer of an epoch is the full
table's, and for a mask that moves also one that stays: what the rule costs, the gradients it collects included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from benchmarks.gowalla import gowalla
from benchmarks.harness import Row, finish, paired, set_threads
from embeddings.id_map import IdMap
from embeddings.sparsity import Schedule, Sparsity
from embeddings.tables import OptimizerSpec, build_table
from recsys.losses import Loss
from recsys.models.mf import MatrixFactorization
from recsys.objective import Objective
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings

DIM, EPOCHS, EVERY = 64, 80, 200
DENSITIES = (0.5, 0.2, 0.1)
SETTINGS = FitSettings(Loss("sampled_softmax", temperature=0.08), NegativeSampling(count=256), batch_size=4096)


def run(scale: float = 1.0) -> int:
    """Time epochs in ABBA pairs; ``scale`` is the share of the users."""
    set_threads()
    train = gowalla("train")
    train = train[: max(1, int(train.shape[0] * scale))]
    repeats = 7 if scale == 1.0 else 1
    rows = []
    for density in DENSITIES:
        pairs = paired(epoch(train, Sparsity(density)), epoch(train, None), repeats=repeats)
        rows.append(Row.duration(f"epoch, density {density:g}", "the full table", pairs))
    moving, still = schedule(train), Sparsity(0.2)
    for rule, sparsity in (
        ("gradient of one step", Sparsity(0.2, moving)),
        ("momentum of all steps", Sparsity(0.2, moving, "momentum", window=EVERY, momentum=0.99)),
    ):
        for peer, other in (("the full table", None), ("a mask that stays", still)):
            pairs = paired(epoch(train, sparsity), epoch(train, other), repeats=repeats)
            rows.append(Row.duration(f"epoch, density 0.2, moved by the {rule}", peer, pairs))
    return finish("sparse_step", rows, scale=scale, headline=rows[1:2])


def schedule(train: csr_array) -> Schedule:
    """That of configs/experiments/dynamic_sparse.yaml."""
    return Schedule(EVERY, EPOCHS * -(-train.nnz // SETTINGS.batch_size), stop=0.75)


def epoch(train: csr_array, sparsity: Sparsity | None) -> Callable[[], None]:
    """A job that trains the next epoch of one model."""
    training, epochs = objective(train, sparsity), iter(range(EPOCHS))

    def job() -> None:
        for _ in training.steps("select", next(epochs), 0):
            pass

    return job


def objective(train: csr_array, sparsity: Sparsity | None) -> Objective:
    """A new model and its steps."""
    tables = (
        build_table(
            IdMap.identity(ids), DIM, optimizer=OptimizerSpec("rowwise_adagrad", lr=0.2), init_std=0.1,
            generator=np.random.default_rng(seed), sparsity=sparsity,
        )
        for seed, ids in enumerate(train.shape)
    )  # fmt: skip
    return Objective(MatrixFactorization(*tables, similarity="cosine"), train, SETTINGS, seed=0)


if __name__ == "__main__":
    sys.exit(run(*map(float, sys.argv[1:2])))
