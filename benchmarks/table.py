"""Training step of embedding tables (lookup, backward, update) against FBGEMM and torch on the CPU.

Shapes: 4 tables of 1 M rows and 1 of 8 M, dimension 64, batch 8192, 1 and 20 ids a bag, zipf 1.05 ids spread over the
table, 8 batches in turn. Both sides start from the same rows and see the same gradients; ``max_difference`` is that of
the rows after 10 steps; where ours are bfloat16, theirs are still float32. Limit: the bytes of a lookup (row read
forward, gradient read, row read and written: 1 KiB) over the machine's stream rate; repeated ids come from cache, so
it can be passed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Paired, Row, finish, paired, probe, set_threads
from embeddings.id_map import IdMap, IntArray
from embeddings.tables import OptimizerSpec, Table, build_table, look_up, step_all
from embeddings.tables.build import RowDtype
from embeddings.tables.spec import OptimizerName

DIM, BATCH, BATCHES, CHECKED_STEPS = 64, 8192, 8, 10
LR, EPS = 0.01, 1e-8
BYTES_PER_LOOKUP = {"float32": DIM * (4 + 3 * 4), "bfloat16": DIM * (4 + 3 * 2), "int8": DIM * 4 + 3 * (DIM + 1)}
JOBS: tuple[tuple[OptimizerName, RowDtype], ...] = (
    ("rowwise_adagrad", "float32"), ("rowwise_adagrad", "bfloat16"), ("rowwise_adagrad", "int8"),
    ("adagrad", "float32"), ("sgd", "float32"),
)  # fmt: skip
SHAPES = ((4, 1 << 20), (1, 1 << 23))


@dataclasses.dataclass(frozen=True)
class Case:
    """Tables, 8 batches of ids int64 [tables, B * L], and the gradient float32 [tables, B, D] of each."""

    tables: int
    rows: int
    pooled: int
    batches: list[Tensor]
    offsets: Tensor
    gradient: Tensor

    @property
    def name(self) -> str:
        """For the row."""
        return f"{self.tables} x {self.rows / 2**20:.3g} Mi rows, L {self.pooled}"

    @property
    def lookups(self) -> int:
        """In one pass over the batches."""
        return sum(batch.numel() for batch in self.batches)


def make_case(tables: int, rows: int, pooled: int, batch: int) -> Case:
    """Draw the ids of a case: zipf 1.05 ranks, each table with its own order of the rows."""
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(1 / np.arange(1, rows + 1) ** 1.05)
    orders = [rng.permutation(rows) for _ in range(tables)]

    def ids(order: IntArray) -> IntArray:
        ranks: IntArray = np.searchsorted(cumulative, rng.random(batch * pooled) * cumulative[-1])
        return order[ranks]

    batches = [torch.from_numpy(np.stack([ids(order) for order in orders])) for _ in range(BATCHES)]
    gradient = torch.from_numpy(rng.standard_normal((tables, batch, DIM), np.float32))
    return Case(tables, rows, pooled, batches, torch.arange(0, batch * pooled + 1, pooled), gradient)


class Ours:
    """Our torch back end: all tables in one call."""

    def __init__(self, case: Case, optimizer: OptimizerName, dtype: RowDtype = "float32") -> None:
        self.case = case
        self.gradients = case.gradient.unbind()
        spec, ids = OptimizerSpec(optimizer, lr=LR, eps=EPS), np.arange(case.rows)[:, None]
        id_map = IdMap(ids, case.rows + 1, case.rows, "full")
        self.tables: list[Table] = [
            build_table(id_map, DIM, optimizer=spec, init_std=0.01, generator=np.random.default_rng(t), dtype=dtype)
            for t in range(case.tables)
        ]

    def weights(self) -> list[Tensor]:
        """[R, D] of each table, without the unseen row."""
        return [table.weight()[:-1] for table in self.tables]

    def step(self, batch: Tensor) -> None:
        """One training step."""
        outputs = look_up(self.tables, batch.unbind(), [self.case.offsets] * len(self.tables))
        torch.autograd.backward(outputs, self.gradients)
        step_all(self.tables)


class Fbgemm:
    """FBGEMM's table-batched operator: all tables in one call, optimizer fused."""

    def __init__(self, case: Case, start: list[Tensor]) -> None:
        from embeddings.tables.fbgemm_table import import_fbgemm

        configs, common, training = import_fbgemm()
        place = (common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)
        self.operator = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(case.rows, DIM, *place) for _ in range(case.tables)],
            optimizer=configs.EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LR,
            eps=EPS,
            bounds_check_mode=common.BoundsCheckMode.NONE,
        )
        for weight, rows in zip(self.operator.split_embedding_weights(), start, strict=True):
            weight.copy_(rows)
        count = case.offsets[-1]
        lengths = [case.offsets[:-1] + t * count for t in range(case.tables)]
        self.offsets = torch.cat([*lengths, (count * case.tables).reshape(1)])
        self.gradient = case.gradient.transpose(0, 1).reshape(-1, case.tables * DIM).contiguous()

    def weights(self) -> list[Tensor]:
        """Float32 [R, D] of each table."""
        found: list[Tensor] = self.operator.split_embedding_weights()
        return found

    def step(self, batch: Tensor) -> None:
        """One training step; the update is part of backward."""
        self.operator(batch.reshape(-1), self.offsets).backward(self.gradient)


class TorchBags:
    """``nn.EmbeddingBag(sparse=True)`` with torch's sparse Adagrad or SGD."""

    def __init__(self, case: Case, start: list[Tensor], optimizer: OptimizerName) -> None:
        self.case = case
        self.bags = [
            nn.EmbeddingBag.from_pretrained(w.clone(), freeze=False, mode="sum", sparse=True, include_last_offset=True)
            for w in start
        ]
        parameters = [bag.weight for bag in self.bags]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, lr=LR)
            if optimizer == "sgd"
            else torch.optim.Adagrad(parameters, lr=LR, eps=EPS)
        )

    def weights(self) -> list[Tensor]:
        """Float32 [R, D] of each table."""
        return [bag.weight.detach() for bag in self.bags]

    def step(self, batch: Tensor) -> None:
        """One training step."""
        outputs = [bag(ids, self.case.offsets) for bag, ids in zip(self.bags, batch, strict=True)]
        torch.autograd.backward(outputs, list(self.case.gradient))
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(case: Case, ours: Ours, theirs: Fbgemm | TorchBags, *, repeats: int) -> tuple[Paired, float]:
    """Ten checked steps of both, then pairs of passes over the 8 batches."""
    for step in range(CHECKED_STEPS):
        for side in (ours, theirs):
            side.step(case.batches[step % BATCHES])
    difference = max(float((a - b).abs().max()) for a, b in zip(ours.weights(), theirs.weights(), strict=True))

    def whole_pass(side: Ours | Fbgemm | TorchBags) -> Callable[[], None]:
        def steps() -> None:
            for batch in case.batches:
                side.step(batch)

        return steps

    return paired(whole_pass(ours), whole_pass(theirs), repeats=repeats), difference


def run(scale: float = 1.0) -> int:
    """Measure every case; ``scale`` shrinks tables and batches."""
    set_threads()
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    rate = probe(min(1.0, scale)).stream_gb_s * 1e9
    torch_version = f"torch {torch.__version__.split('+')[0]}"
    fbgemm = f"FBGEMM {importlib.metadata.version('fbgemm-gpu-cpu')}"
    against_fbgemm: list[Row] = []
    others: list[Row] = []
    for tables, rows in SHAPES:
        for pooled in (1, 20):
            case = make_case(tables, max(64, int(rows * scale)), pooled, max(8, int(BATCH * scale)))
            for optimizer, dtype in JOBS:
                ours = Ours(case, optimizer, dtype)
                row_wise = optimizer == "rowwise_adagrad"
                theirs = Fbgemm(case, ours.weights()) if row_wise else TorchBags(case, ours.weights(), optimizer)
                pairs, difference = measure(case, ours, theirs, repeats=1 if scale < 1 else 7)
                name = fbgemm if row_wise else f"{torch_version} EmbeddingBag"
                job = optimizer if dtype == "float32" else f"{optimizer}, {dtype} rows"
                row = Row.rate(
                    f"{case.name}, {job}", name, pairs, work=case.lookups, unit="lookups/s",
                    limit=rate / BYTES_PER_LOOKUP[dtype], max_difference=difference, steps=CHECKED_STEPS,
                )  # fmt: skip
                (against_fbgemm if row_wise and dtype == "float32" else others).append(row)
                del ours, theirs
    return finish("table", [*against_fbgemm, *others], scale=scale, headline=against_fbgemm)


if __name__ == "__main__":
    sys.exit(run(*map(float, sys.argv[1:2])))
