"""A toy graph, its models, and an independent dense version of the equations in plain torch autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, Table, build_table
from recsys.knowledge_graph import KnowledgeGraph
from recsys.models.kgat import Kgat
from recsys.models.transr import TransR
from recsys.rng import generator

USERS, ITEMS, DIM = 9, 7, 5


def toy() -> csr_array:
    """A random graph in which user 4 and item 2 are isolated."""
    dense = (np.random.default_rng(3).random((USERS, ITEMS)) < 0.4).astype(np.float32)
    dense[4], dense[:, 2] = 0, 0
    return csr_array(dense)


def full_map(count: int) -> IdMap:
    return IdMap(np.arange(count)[:, None], count + 1, count, "full")


def two_row_map(count: int) -> IdMap:
    """Two weighted rows an id, five rows in all."""
    ids = np.arange(count)
    weights = (1 + ids[:, None] % 3 * np.array([[0.5, -0.25]])).astype(np.float32)
    return IdMap(np.stack([ids % 4, ids * 3 % 4], axis=1), 5, 4, "pairs", weights)


def tables(
    train: csr_array,
    spec: OptimizerSpec | None = None,
    make_map: Callable[[int], IdMap] = full_map,
    dim: int = DIM,
    backend: str = "torch",
) -> tuple[Table, Table]:
    optimizer = spec or OptimizerSpec("adam", lr=0.05)
    users, items = (
        build_table(make_map(n), dim, backend=backend, optimizer=optimizer, init_std=0.3, generator=generator(0, side))  # type: ignore[arg-type]
        for side, n in zip(("users", "items"), train.shape, strict=True)
    )
    return users, items


def dense_map(id_map: IdMap) -> Tensor:
    """Float32 [num_ids + 1, num_rows]: vectors = matrix @ rows, the unseen id last."""
    matrix = torch.zeros(id_map.num_ids + 1, id_map.num_rows)
    weights = np.ones(id_map.rows.shape, np.float32) if id_map.weights is None else id_map.weights
    for i in range(id_map.num_ids):
        for row, weight in zip(id_map.rows[i], weights[i], strict=True):
            matrix[i, row] += float(weight)
    matrix[id_map.num_ids, id_map.unseen_row] = 1.0
    return matrix


def dense_adjacency(train: csr_array) -> Tensor:
    """``D^-1/2 A D^-1/2`` over [users, unseen, items, unseen], float32."""
    users, items = train.shape
    size = users + items + 2
    adjacency = torch.zeros(size, size)
    adjacency[:users, users + 1 : users + 1 + items] = torch.from_numpy(train.toarray() != 0).float()
    adjacency = adjacency + adjacency.T
    degree = adjacency.sum(1)
    root = torch.where(degree > 0, degree.clamp(min=1) ** -0.5, torch.zeros(()))
    return root[:, None] * adjacency * root[None, :]


def dense_lightgcn(
    user_rows: Tensor, item_rows: Tensor, maps: tuple[Tensor, Tensor], train: csr_array, k: int
) -> Tensor:
    """He et al. 2020, eq. 7 and 8, as matrix products: [users + 1 + items + 1, D]."""
    layer = torch.cat([maps[0] @ user_rows, maps[1] @ item_rows])
    adjacency = dense_adjacency(train)
    layers = [layer]
    for _ in range(k):
        layers.append(adjacency @ layers[-1])
    return torch.stack(layers).mean(0)


def knowledge(num_items: int = ITEMS) -> KnowledgeGraph:
    """Two relations over the items and four other entities; the last entity is isolated, the last item is a tail."""
    items = np.arange(num_items)
    by_first = np.stack([items, items % 2, num_items + items % 3], axis=1)
    between = np.array([[num_items, 1, num_items + 2], [num_items + 1, 0, num_items - 1]])
    return KnowledgeGraph(num_items, num_items + 4, 2, np.concatenate([by_first, between]))


def kgat(
    train: csr_array,
    *,
    make_map: Callable[[int], IdMap] = full_map,
    widths: tuple[int, ...] = (4, 3),
    lr: float = 0.05,
    dropout: float = 0.2,
    l2: float = 0.01,
) -> Kgat:
    spec = OptimizerSpec("adam", lr=lr)
    entities = build_table(IdMap.identity(4), DIM, optimizer=spec, init_std=0.3, generator=generator(0, "entities"))
    learned = TransR(entities, knowledge(train.shape[1]), generator=np.random.default_rng(1))
    made = tables(train, spec, make_map)
    draws = np.random.default_rng(2)
    return Kgat(*made, learned, widths=widths, l2=l2, dropout=dropout, generator=draws)
