"""Tables that share one TorchRec collection and are updated together, once in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.tables.kept_gradients import Lookup, join_bags
from embeddings.tables.spec import OptimizerSpec
from embeddings.tables.table import Bags, Table

if TYPE_CHECKING:
    from embeddings.tables.collection import Field
    from embeddings.tables.torchrec_collection import TorchRecTables


class _Shared:
    """A collection, and the gradients of the bags of each field since the last step."""

    def __init__(self, collection: TorchRecTables) -> None:
        self.collection = collection
        self.pending: list[list[tuple[Bags, Tensor]]] = [[] for _ in collection.fields]

    def pool(self, bags: dict[int, Bags]) -> tuple[Tensor, ...]:
        """Float32 [B, D] for the bags of each place."""
        places = range(len(self.pending))
        pooled = self.collection.pool([bags.get(place) for place in places])
        parts = self.collection.split(pooled)
        return tuple(parts[place][: bag.count].contiguous() for place, bag in bags.items())

    def step(self) -> None:
        """Give FBGEMM all bags as one batch; its backward applies the optimizer to the sum by row."""
        joined = {place: join_bags(pending) for place, pending in enumerate(self.pending) if pending}
        if not joined:
            return
        for pending in self.pending:
            pending.clear()
        with torch.enable_grad():
            pooled = self.pool({place: bags for place, (bags, _) in joined.items()})
            torch.autograd.backward(pooled, [gradient for _, gradient in joined.values()])


class CollectedTable(Table):
    """One table of a collection on FBGEMM, see :func:`collected_tables`.

    Args:
        shared: what the tables of the collection share.
        place: of this one among them.
        optimizer: of the collection.
    """

    sum: Tensor

    def __init__(self, shared: _Shared, place: int, optimizer: OptimizerSpec) -> None:
        field = shared.collection.fields[place]
        super().__init__(field.id_map, field.dim, optimizer)
        self.pending = shared.pending[place]
        self._shared, self._place = [shared], place  # in a list, so that the collection is no module of each table
        self.embedding = nn.Parameter(shared.collection.weight(field.name))
        if optimizer.name != "sgd":
            self.register_buffer("sum", shared.collection.get_buffer(f"sum_{field.name}"))

    def pool(self, bags: Bags) -> Tensor:
        """Float32 [B, D]: the weighted sum of each bag's rows."""
        return pool_collected([self], [bags])[0]

    def weight(self) -> Tensor:
        """Float32 [num_rows, D], a view."""
        return self.embedding.detach()

    def write(self, values: Tensor, at: Tensor) -> None:
        """See :meth:`Table.write`."""
        self.weight()[at] = values

    def set_lr(self, lr: float) -> None:
        """See :meth:`Table.set_lr`; of all tables of the collection."""
        super().set_lr(lr)
        self._shared[0].collection.set_lr(lr)

    def optimizer_state(self) -> dict[str, Tensor]:
        """See :meth:`Table.optimizer_state`."""
        return {} if self.optimizer.name == "sgd" else {"sum": self.sum}

    def step(self) -> None:
        """Apply the gradients since the last step, of all tables of the collection."""
        self._shared[0].step()


def collected_tables(
    fields: Sequence[Field], *, optimizer: OptimizerSpec, init_std: float, generators: Sequence[np.random.Generator]
) -> list[Table]:
    """Tables in one ``FusedEmbeddingBagCollection``: what is looked up together is one ``KeyedJaggedTensor``.

    FBGEMM's backward applies the optimizer at once, so that a table that a step looks up several times (an item tower,
    its users' histories, a self-supervised term) would be updated as often. Here backward keeps the gradient of each
    bag, and the step passes them all to FBGEMM as one batch: the update of the torch back end, for another forward.

    Args:
        fields: of the tables, with dimensions that are multiples of 4.
        optimizer: SGD, Adagrad or row-wise Adagrad, without weight decay.
        init_std: standard deviation of the rows' normal initialisation, the torch back end's numbers.
        generators: draw it, one for each field.

    Raises:
        ModuleNotFoundError: TorchRec or FBGEMM is missing or does not load.
        ValueError: FBGEMM lacks the optimizer on the CPU, or a dimension is not a multiple of 4.
    """
    from embeddings.tables.torchrec_collection import TorchRecTables  # it imports the module of `look_up`

    collection = TorchRecTables(fields, optimizer, init_std=init_std, generators=generators, weighted=True)
    shared = _Shared(collection)
    return [CollectedTable(shared, place, optimizer) for place in range(len(fields))]


def pool_collected(tables: Sequence[CollectedTable], bags: Sequence[Bags]) -> tuple[Tensor, ...]:
    """Pool several tables, all of one collection in one call where each is there once.

    Args:
        tables: T of them.
        bags: what is looked up in each.

    Returns:
        T times float32 [B, D].
    """
    shared = {id(table._shared[0]) for table in tables}
    if len(shared) > 1 or len({table._place for table in tables}) < len(tables):
        return tuple(pool_collected([table], [bag])[0] for table, bag in zip(tables, bags, strict=True))
    pooled: tuple[Tensor, ...] = Lookup.apply(_pool, tables, bags, *(table.embedding for table in tables))  # type: ignore[no-untyped-call]
    return pooled


def _pool(tables: Sequence[CollectedTable], bags: Sequence[Bags]) -> tuple[Tensor, ...]:
    return tables[0]._shared[0].pool({table._place: bag for table, bag in zip(tables, bags, strict=True)})
