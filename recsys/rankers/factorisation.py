"""Rankers with a first-order part: Wide&Deep (Cheng et al. 2016) and DeepFM (Guo et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embeddings.tables.collection import TableCollection
from recsys.rankers.ranker import Ranker, Tower, perceptron


class WideDeep(Ranker):
    """A linear model of the ids plus a tower over their vectors (Cheng et al. 2016, eq. 3).

    The first column of each table is the id's weight in the linear part, the other columns are its vector: the two
    parts share rows, lookups and compression.

    Args:
        tables: one for each categorical field, of at least 2 columns.
        num_dense: numeric fields, in both parts.
        tower: the deep part.

    Raises:
        ValueError: A table has one column only.
    """

    def __init__(self, tables: TableCollection, num_dense: int, tower: Tower) -> None:
        super().__init__(tables, num_dense)
        thin = [field.name for field in tables.fields if field.dim < 2]
        if thin:
            raise ValueError(
                f"{type(self).__name__} needs dim >= 2, one column for the linear part and the rest for the vector,"
                f" but {thin[0]} has dim 1"
            )
        self.wide = nn.Linear(num_dense, 1) if num_dense else None
        self.tower = perceptron(self.width - len(tables.fields), tower, self.noise, out=1)

    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """See :meth:`Ranker.combine`."""
        fields = self.tables.split(vectors)
        wide = torch.stack([vector[:, 0] for vector in fields], dim=1).sum(1)
        if self.wide is not None:
            wide = wide + self.wide(dense_BN).squeeze(1)
        deep = self.tower(torch.cat([*(vector[:, 1:] for vector in fields), dense_BN], dim=1)).squeeze(1)
        logits: Tensor = wide + deep
        return logits


class DeepFm(WideDeep):
    """A factorisation machine and a tower over the same vectors (Guo et al. 2017, eq. 1 to 4).

    To :class:`WideDeep` it adds the inner products of all pairs of fields, ``(|sum_f v_f|^2 - sum_f |v_f|^2) / 2``
    (Rendle 2010, lemma 3.1).

    Raises:
        ValueError: The fields have different dimensions.
    """

    def __init__(self, tables: TableCollection, num_dense: int, tower: Tower) -> None:
        super().__init__(tables, num_dense, tower)
        self.equal_dims()

    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """See :meth:`Ranker.combine`."""
        whole_BFD = vectors.reshape(len(vectors), len(self.tables.dims), self.tables.dims[0])[:, :, 1:]
        pairs = whole_BFD.sum(1).square().sum(1) - whole_BFD.square().sum((1, 2))
        return super().combine(vectors, dense_BN) + pairs / 2
