"""FBGEMM's table-batched embedding, whose fused backward pass is run by the step, once for all lookups."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap
from embeddings.tables.kept_gradients import Lookup, join_bags
from embeddings.tables.spec import OptimizerSpec
from embeddings.tables.table import Bags, Table
from embeddings.tables.torch_table import normal_rows

INSTALL = "pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0"
_OPTIMIZERS = {"sgd": "EXACT_SGD", "adagrad": "EXACT_ADAGRAD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD"}


class FbgemmTable(Table):
    """A table in ``SplitTableBatchedEmbeddingBagsCodegen`` on the CPU.

    FBGEMM's own backward applies the optimizer at once, so that a table that a step looks up several times would be
    updated as often. Here backward keeps the gradients, and :meth:`step` passes them to FBGEMM: those of one lookup
    through the graph that is there, those of several as one batch, which is looked up again.

    Args:
        id_map: which rows an id has.
        dim: D, a multiple of 4.
        optimizer: SGD, Adagrad or row-wise Adagrad.
        init_std: standard deviation of the rows' normal initialisation, the torch back end's numbers.
        generator: draws it.

    Raises:
        ModuleNotFoundError: FBGEMM is missing or does not load.
        ValueError: FBGEMM lacks the optimizer or weight decay on the CPU, or ``dim`` is not a multiple of 4.
    """

    sum: Tensor

    def __init__(
        self, id_map: IdMap, dim: int, optimizer: OptimizerSpec, *, init_std: float, generator: np.random.Generator
    ) -> None:
        super().__init__(id_map, dim, optimizer)
        check_supported(dim, optimizer)
        configs, common, training = import_fbgemm()
        operator = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(self.num_rows, dim, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
            optimizer=getattr(configs.EmbOptimType, _OPTIMIZERS[optimizer.name]),
            learning_rate=optimizer.lr,
            eps=optimizer.eps,
            bounds_check_mode=common.BoundsCheckMode.NONE,
        )
        self._operator = [operator]  # in a list, so that its own buffers stay out of state_dict
        rows = operator.split_embedding_weights()[0]
        self.embedding = nn.Parameter(rows.copy_(normal_rows(self.num_rows, dim, init_std, generator)))
        if optimizer.name != "sgd":
            self.register_buffer("sum", operator.split_optimizer_states()[0][0])
        self._latest: tuple[Bags, Tensor] | None = None
        self.register_load_state_dict_post_hook(lambda *_: self._forget())  # type: ignore[no-untyped-call]

    def pool(self, bags: Bags) -> Tensor:
        """Float32 [B, D]: the weighted sum of each bag's rows."""
        if not torch.is_grad_enabled():
            return self._operate(bags)
        pooled: tuple[Tensor] = Lookup.apply(_pool, [self], [bags], self.embedding)  # type: ignore[no-untyped-call]
        return pooled[0]

    def weight(self) -> Tensor:
        """Float32 [num_rows, D], a view."""
        return self.embedding.detach()

    def write(self, values: Tensor, at: Tensor) -> None:
        """See :meth:`Table.write`."""
        self.weight()[at] = values

    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step, as one batch."""
        latest, self._latest = self._latest, None
        if not self.pending:
            return
        bags, gradient = join_bags(self.pending)
        self.pending.clear()
        with torch.enable_grad():
            pooled = latest[1] if latest is not None and latest[0] is bags else self._operate(bags)
            torch.autograd.backward(pooled, gradient)

    def set_lr(self, lr: float) -> None:
        """See :meth:`Table.set_lr`."""
        super().set_lr(lr)
        self._operator[0].set_learning_rate(lr)
        self._forget()

    def optimizer_state(self) -> dict[str, Tensor]:
        """See :meth:`Table.optimizer_state`."""
        return {} if self.optimizer.name == "sgd" else {"sum": self.sum}

    def _forget(self) -> None:
        """The graph of the latest lookup has the learning rate and the rows of its time."""
        self._latest = None

    def _operate(self, bags: Bags) -> Tensor:
        """As :meth:`pool`, with FBGEMM's graph."""
        offsets = torch.arange(len(bags.rows) + 1) if bags.offsets is None else bags.offsets
        pooled: Tensor = self._operator[0](bags.rows.long(), offsets, per_sample_weights=bags.weights)
        return pooled


def _pool(tables: Sequence[FbgemmTable], bags: Sequence[Bags]) -> tuple[Tensor, ...]:
    (table,), (bag,) = tables, bags
    with torch.enable_grad():
        pooled = table._operate(bag)
    table._latest = bag, pooled
    return (pooled.detach(),)


def check_supported(dim: int, optimizer: OptimizerSpec) -> None:
    """Raise ValueError where FBGEMM on the CPU lacks the optimizer or takes no such dimension."""
    if optimizer.name not in _OPTIMIZERS:
        raise ValueError(
            f"FBGEMM has no {optimizer.name} on the CPU; use the torch back end (backend: torch), or one of"
            f" {', '.join(_OPTIMIZERS)}"
        )
    if optimizer.weight_decay:
        raise ValueError(
            f"FBGEMM ignores weight decay on the CPU, got {optimizer.weight_decay}; use the torch back end"
            " (backend: torch), or weight_decay 0"
        )
    if dim % 4:
        raise ValueError(
            f"FBGEMM needs a dim that is a multiple of 4, got {dim}; use {dim + 4 - dim % 4} or backend torch"
        )


def import_fbgemm() -> tuple[Any, Any, Any]:
    """FBGEMM's modules of optimizers, locations and the operator."""
    stem = "split_table_batched_embeddings_ops"
    names = ("split_embedding_configs", f"{stem}_common", f"{stem}_training")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it warns of optional operators that it lacks
            configs, common, training = (importlib.import_module(f"fbgemm_gpu.{name}") for name in names)
    except (ImportError, OSError, RuntimeError) as error:
        raise ModuleNotFoundError(
            f"backend fbgemm needs fbgemm-gpu-cpu 1.8.0 beside torch 2.13.0 ({type(error).__name__}: {error});"
            f" run `{INSTALL}`, or use backend torch"
        ) from error
    return configs, common, training
