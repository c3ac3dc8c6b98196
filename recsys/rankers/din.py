"""Deep interest network: target attention over what the user had before (Zhou et al. 2018)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from embeddings.tables.collection import TableCollection, Tables
from recsys.event_batch import EventBatch
from recsys.rankers.ranker import Ranker, Tower, beside, perceptron


@dataclasses.dataclass(frozen=True)
class Interest:
    """How a history is pooled.

    Attributes:
        item: field of the candidate, whose table the history looks up too.
        hidden: widths of the activation unit.
    """

    item: str = "item"
    hidden: tuple[int, ...] = (36,)


class Din(Ranker):
    """Vectors of the fields, the numbers and the user's interest in the candidate, joined by a tower.

    The interest is ``sum_j a(e_j, v) e_j`` over the vectors e_j of the history (eq. 3). The activation unit a is a
    perceptron with PReLU over ``[e_j, v, e_j - v, e_j * v]``; its weights are not normalised (section 4.3), so that the
    strength of an interest counts. An empty history has the interest 0.

    Args:
        tables: one for each categorical field.
        num_dense: numeric fields.
        tower: over everything.
        interest: how the history is pooled.

    Raises:
        ValueError: There is no such item field, or the back end has no tables of their own.
    """

    def __init__(self, tables: TableCollection, num_dense: int, tower: Tower, interest: Interest) -> None:
        super().__init__(tables, num_dense)
        names = [field.name for field in tables.fields]
        if interest.item not in names:
            raise ValueError(f"din needs the item field {interest.item!r}; the fields are {', '.join(names)}")
        if not isinstance(tables, Tables):
            raise ValueError("din looks the items' table up twice a step, which needs backend torch or fbgemm")
        self.place = names.index(interest.item)
        dim = tables.dims[self.place]
        widths = (4 * dim, *interest.hidden)
        layers: list[nn.Module] = []
        for width, hidden in zip(widths, interest.hidden, strict=False):
            layers += [nn.Linear(width, hidden), nn.PReLU()]
        self.activation = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        self.tower = perceptron(self.width + dim, tower, self.noise, out=1)

    def logits(self, batch: EventBatch) -> Tensor:
        """See :meth:`Ranker.logits`.

        Raises:
            ValueError: The events have no histories.
        """
        if batch.history is None:
            raise ValueError("din needs events with histories; set dataset.history of a next_item source")
        self.check(batch)
        vectors = self.tables(batch.ids)
        assert isinstance(self.tables, Tables)
        items_TD = self.tables.tables[self.place](batch.history.ids)
        interest = self.pool(self.tables.split(vectors)[self.place], items_TD, batch.history.offsets)
        return self.combine(torch.cat([vectors, interest], dim=1), batch.dense)

    def pool(self, candidates_BD: Tensor, items_TD: Tensor, offsets: Tensor) -> Tensor:
        """Interests [B, D] from candidates and the histories' items, whose events ``offsets`` int64 [B + 1] tell."""
        owners_T = torch.repeat_interleave(torch.arange(len(candidates_BD)), offsets.diff())
        targets_TD = candidates_BD[owners_T]
        pairs = torch.cat([items_TD, targets_TD, items_TD - targets_TD, items_TD * targets_TD], dim=1)
        return torch.zeros_like(candidates_BD).index_add(0, owners_T, self.activation(pairs) * items_TD)

    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """See :meth:`Ranker.combine`; the last vector is the interest."""
        logits: Tensor = self.tower(beside(vectors, dense_BN)).squeeze(1)
        return logits
