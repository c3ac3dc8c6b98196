"""Deep learning recommendation model (Naumov et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from embeddings.tables.collection import TableCollection
from recsys.rankers.ranker import Ranker, Tower, perceptron


class Dlrm(Ranker):
    """Inner products of all pairs of fields, the numbers' vector among them, into a tower (section 2.1).

    The bottom tower turns the numeric fields into a vector of the tables' dimension. The top tower gets this vector and
    the products of the pairs i < j; without numeric fields just the products.

    Args:
        tables: one for each categorical field, of one dimension.
        num_dense: numeric fields.
        tower: the top tower.
        bottom: hidden widths of the bottom tower.

    Raises:
        ValueError: The fields have different dimensions, or one field without numbers has no pair.
    """

    def __init__(self, tables: TableCollection, num_dense: int, tower: Tower, bottom: tuple[int, ...] = (64,)) -> None:
        super().__init__(tables, num_dense)
        dim = self.equal_dims()
        self.bottom = perceptron(num_dense, Tower(bottom), self.noise, out=dim) if num_dense else None
        count = len(tables.fields) + bool(num_dense)
        if count < 2:
            raise ValueError(
                f"Dlrm multiplies pairs of fields, got {tables.fields[0].name} alone; add a field or a number"
            )
        first, second = torch.triu_indices(count, count, offset=1)
        self.register_buffer("pairs", first * count + second, persistent=False)
        self.top = perceptron(len(first) + (dim if num_dense else 0), tower, self.noise, out=1)

    pairs: Tensor

    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """See :meth:`Ranker.combine`."""
        numbers = [] if self.bottom is None else [self.bottom(dense_BN)]
        whole_BFD = torch.cat([*numbers, vectors], dim=1).reshape(
            len(vectors), len(self.tables.dims) + len(numbers), self.tables.dims[0]
        )
        products = torch.bmm(whole_BFD, whole_BFD.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        logits: Tensor = self.top(torch.cat([*numbers, products], dim=1)).squeeze(1)
        return logits
