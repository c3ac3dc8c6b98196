"""What sparse tables cost in time: steps of matrix factorisation on Gowalla, and the updates of the mask.

Sampled softmax over 256 shared negatives, batches of 4,096, row-wise Adagrad, d 64. The peer of a sparse step is the
full table's; that of a step with an update is one without, and its share of the time between two updates is beside it.
"""

from __future__ import annotations

import itertools
import sys
import time
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
UPDATES = 5
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
    moving = schedule(train)
    for rule, sparsity in (
        ("gradient of one step", Sparsity(0.2, moving)),
        ("momentum of all steps", Sparsity(0.2, moving, "momentum", window=EVERY, momentum=0.99)),
    ):
        rows.append(update(train, rule, sparsity, UPDATES if scale == 1.0 else 1))
    return finish("sparse_step", rows, scale=scale, headline=rows[1:2])


def schedule(train: csr_array) -> Schedule:
    """That of configs/experiments/dynamic_sparse.yaml."""
    return Schedule(EVERY, EPOCHS * -(-train.nnz // SETTINGS.batch_size), stop=0.75)


def update(train: csr_array, rule: str, sparsity: Sparsity, count: int) -> Row:
    """A step that moves entries against one that does not, after a first update; its share of an epoch is beside it."""
    seconds: list[float] = []
    training = objective(train, sparsity)
    steps = itertools.chain.from_iterable(training.steps("select", number, 0) for number in itertools.count())
    start = time.perf_counter()
    for _ in itertools.islice(steps, (1 + count) * EVERY):
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    moved, usual = np.array(seconds[2 * EVERY - 1 :: EVERY]), float(np.median(seconds))
    ours = float(np.median(moved))
    return Row(
        f"step with an update, density 0.2, by the {rule}", "a step without", ours, usual, "s",
        usual / ours, usual / float(moved.max()), usual / float(moved.min()),
        quality={"every": EVERY, "overhead": (ours - usual) / (EVERY * usual)},
    )  # fmt: skip


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
