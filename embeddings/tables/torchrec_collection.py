"""TorchRec's collection of embedding bags on FBGEMM, with the optimizer fused into the backward pass."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.tables.collection import Field, TableCollection
from embeddings.tables.fbgemm_table import check_supported, import_fbgemm
from embeddings.tables.spec import OptimizerSpec, TableBytes
from embeddings.tables.table import Bags, map_tensors
from embeddings.tables.torch_table import normal_rows

INSTALL = "pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 && pip install --no-deps torchrec==1.8.0"


class TorchRecTables(TableCollection):
    """``FusedEmbeddingBagCollection``: a ``KeyedJaggedTensor`` of rows in, one pooled vector for each field out.

    The id maps turn ids into rows before TorchRec sees them; where an id has several rows, or rows have weights, the
    jagged tensor has a bag of them with per-sample weights. Look the collection up once in a step, see
    :class:`embeddings.tables.fbgemm_table.FbgemmTable`.

    Args:
        fields: F of them, with dimensions that are multiples of 4.
        optimizer: SGD, Adagrad or row-wise Adagrad, without weight decay.
        init_std: standard deviation of the rows' normal initialisation, the torch back end's numbers.
        generators: draw it, one for each field; it may be the same one.
        weighted: whether :meth:`pool` gets bags with weights where no id map has any.

    Raises:
        ModuleNotFoundError: TorchRec or FBGEMM is missing or does not load.
        ValueError: FBGEMM lacks the optimizer on the CPU, or a dimension is not a multiple of 4.
    """

    def __init__(
        self, fields: Sequence[Field], optimizer: OptimizerSpec, *, init_std: float,
        generators: Sequence[np.random.Generator], weighted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(fields)
        for field in fields:
            check_supported(field.dim, optimizer)
        self._torchrec = import_torchrec()
        maps = [field.id_map for field in fields]
        self._weighted = weighted or any(m.rows_per_id > 1 or m.weights is not None for m in maps)
        bags = self._collection(optimizer)
        self._bags = [bags]  # in a list, so that its own names stay out of state_dict
        for field, generator in zip(fields, generators, strict=True):
            weight = bags.embedding_bags[field.name].weight.data
            weight.copy_(normal_rows(field.id_map.num_rows, field.dim, init_std, generator))
            self.register_buffer(f"embedding_{field.name}", weight)
        for name, state in self._states():
            self.register_buffer(f"sum_{name}", state)

    @functools.cached_property
    def _maps(self) -> list[tuple[Tensor, Tensor | None]]:
        """Rows and weights of the ids of each field; :meth:`pool` is given rows, and does without."""
        return [_whole_map(field, *map_tensors(field.id_map)) for field in self.fields]

    def look_up(self, ids_FB: Tensor) -> Tensor:
        """See :meth:`TableCollection.look_up`."""
        bags = []
        for field, (map_rows, map_weights), ids in zip(self.fields, self._maps, ids_FB, strict=True):
            known = (ids >= 0) & (ids < field.id_map.num_ids)
            places = torch.where(known, ids, field.id_map.num_ids)
            weights = None if map_weights is None else map_weights[places].reshape(-1)
            offsets = torch.arange(len(ids) + 1) * map_rows.shape[1]
            bags.append(Bags(map_rows[places].reshape(-1), weights, offsets))
        return self.pool(bags)

    def pool(self, bags: Sequence[Bags | None]) -> Tensor:
        """The weighted sums of the bags of every field side by side.

        Args:
            bags: F times the rows of at most B bags, or None.

        Returns:
            Float32 [B, sum of D_f], B of the field with most bags; a field has zeros where it has fewer.
        """
        count = max(0 if bag is None else bag.count for bag in bags)
        if count == 0:  # of which a jagged tensor cannot be made
            return torch.empty(0, sum(self.dims), requires_grad=True)
        rows, weights, lengths = [], [], []
        for bag in bags:
            padded = torch.zeros(count, dtype=torch.int64)
            if bag is not None:
                padded[: bag.count] = 1 if bag.offsets is None else bag.offsets.diff()
                rows.append(bag.rows.long())
                weights.append(torch.ones(len(bag.rows)) if bag.weights is None else bag.weights)
            lengths.append(padded)
        jagged = self._torchrec.KeyedJaggedTensor(
            keys=[field.name for field in self.fields],
            values=torch.cat(rows),
            lengths=torch.cat(lengths),
            weights=torch.cat(weights) if self._weighted else None,
        )
        pooled: Tensor = self._bags[0](jagged).values()
        return pooled

    def weight(self, name: str) -> Tensor:
        """See :meth:`TableCollection.weight`."""
        weight: Tensor = self.get_buffer(f"embedding_{name}")
        return weight

    def bytes(self) -> TableBytes:
        """See :meth:`TableCollection.bytes`."""
        sizes = {"embedding": 0, "sum": 0}
        for name, tensor in self.named_buffers():
            sizes[name.partition("_")[0]] += tensor.nbytes
        maps = sum(t.nbytes for parts in self._maps for t in parts if t is not None)
        return TableBytes(sizes["embedding"], sizes["sum"], maps)

    def set_lr(self, lr: float) -> None:
        """See :meth:`TableCollection.set_lr`."""
        for module in self._operators():
            module.set_learning_rate(lr)

    def _collection(self, optimizer: OptimizerSpec) -> Any:
        module, configs = self._torchrec.modules.fused_embedding_modules, self._torchrec.modules.embedding_configs
        kinds = {
            "sgd": (torch.optim.SGD, {}),
            "adagrad": (torch.optim.Adagrad, {"eps": optimizer.eps}),
            "rowwise_adagrad": (self._torchrec.optim.RowWiseAdagrad, {"eps": optimizer.eps}),
        }
        kind, extra = kinds[optimizer.name]
        tables = [
            configs.EmbeddingBagConfig(
                name=field.name,
                embedding_dim=field.dim,
                num_embeddings=field.id_map.num_rows,
                feature_names=[field.name],
                pooling=configs.PoolingType.SUM,
            )
            for field in self.fields
        ]
        return module.FusedEmbeddingBagCollection(
            tables, kind, {"lr": optimizer.lr, **extra}, is_weighted=self._weighted, device=torch.device("cpu")
        )

    def _operators(self) -> list[Any]:
        """FBGEMM's operators: one, since all fields are pooled alike."""
        return [module._emb_module for module in self._bags[0]._emb_modules]

    def _states(self) -> list[tuple[str, Tensor]]:
        """The sums of squares by field, views; none for SGD."""
        states = [state for operator in self._operators() for state in operator.split_optimizer_states()]
        return [(field.name, parts[0]) for field, parts in zip(self.fields, states, strict=False) if len(parts)]


def import_torchrec() -> Any:
    """The ``torchrec`` package, its modules loaded.

    Raises:
        ModuleNotFoundError: It, or FBGEMM below it, is missing or does not load.
    """
    import_fbgemm()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what it lacks without a GPU
            for name in ("modules.fused_embedding_modules", "modules.embedding_configs", "optim"):
                importlib.import_module(f"torchrec.{name}")
            return importlib.import_module("torchrec")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModuleNotFoundError(
            f"backend torchrec needs torchrec 1.8.0 beside torch 2.13.0 ({type(error).__name__}: {error});"
            f" run `{INSTALL}`, or use backend torch"
        ) from error


def _whole_map(field: Field, rows: Tensor | None, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Int64 rows [N + 1, H] with the unseen id last, written out for the identity too, and their weights."""
    if rows is None:
        rows = torch.cat([torch.arange(field.id_map.num_ids), torch.tensor([field.id_map.unseen_row])])[:, None]
    return rows.long(), weights
