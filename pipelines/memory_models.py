"""Memory that fitting a model takes, by what it allocates: MiB beside the training matrix."""

from __future__ import annotations

from pipelines.config_ensemble import Ensemble
from pipelines.config_models import Bspm, ChebyCf, Ease, GfCf, Ials, ItemKnn, LightGcn, Model, Popularity, Slim
from pipelines.config_rpg import Rpg
from pipelines.config_section import TableModel
from pipelines.config_sequence import SequenceModel
from pipelines.config_tiger import Tiger
from recsys.models.ease import dense_gib
from recsys.truncated_svd import OVERSAMPLING

MIB = 2**20
_STATE_PER_WEIGHT = {"sgd": 0.0, "adagrad": 1.0, "rowwise_adagrad": 0.0, "adam": 2.0, "lazy_adam": 2.0}
_SVD_COPIES = 6
"""The basis, its image, three of the Chebyshev recurrence, and one while they are made orthonormal."""
_SLIM_NEIGHBOURS = 200
_PAIR_BYTES = 12
"""Of an entry of a sparse similarity: index and value, the value twice while rows are cut."""

_TIGER_BATCH, _TIGER_LEVELS = 256, 4
"""Targets of a step and codes of an item, as usual."""
_DIGITS, _DIGIT_WIDTH = 32, 256
"""Of a long semantic id, as usual."""
_CONTENT_DIM = 128
"""Columns of the items' content, as usual."""


def fitting_mib(model: Model | SequenceModel | Tiger | Rpg | Ensemble, rows: int, users: int, items: int) -> float:
    """Peak MiB of fitting ``model`` on ``rows`` interactions of so many users and items."""
    match model:
        case TableModel():
            own = _propagation(model, rows, users, items) if isinstance(model, LightGcn) else 0.0
            found = _tables(model, users, items) + own
        case Tiger():
            found = _transformer(model) + (_dense_head(model.dim, items) if model.dense is not None else 0.0)
        case Rpg():
            found = _tokens(model)
        case Ensemble():
            found = 0.0  # its members are trained before
        case Popularity():
            found = items * 4 / MIB
        case Ials(dim=dim):
            found = 2 * (users + items) * dim * 4 / MIB
        case ItemKnn(neighbours=neighbours):
            found = items * min(neighbours, items) * _PAIR_BYTES / MIB
        case Slim():
            found = items * min(_SLIM_NEIGHBOURS, items) * _PAIR_BYTES / MIB
        case Ease(method=method, memory_gib=limit, rank=rank):
            dense = dense_gib(items)
            fits = method == "dense" or (method == "auto" and dense <= limit)
            found = dense * 1024 if fits else _svd(rank, rows, users, items)
        case GfCf(rank=rank) | ChebyCf(rank=rank) | Bspm(rank=rank):
            found = _svd(rank, rows, users, items)
    return found


def _tables(model: TableModel, users: int, items: int) -> float:
    """A full table, the largest: weights and optimizer state, thrice (live, initial, best or being written)."""
    weights = (users + items + 2) * model.table_dim * 4
    return 3 * weights * (1 + _STATE_PER_WEIGHT[model.optimizer.name]) / MIB


def _transformer(model: Tiger) -> float:
    """Parameters of both stacks with Adam's moments, thrice, and what a step keeps of its longest sequences."""
    attention = 4 * model.dim * model.heads * model.head_dim
    weights = model.layers * (3 * attention + 4 * model.dim * model.inner)
    tokens = _TIGER_BATCH * model.max_items * _TIGER_LEVELS
    step = tokens * model.layers * 2 * (model.inner + 6 * model.dim)
    return (9 * weights + step) * 4 / MIB


def _tokens(model: Rpg) -> float:
    """Tokens and heads of 32 digits with Adam's moments, thrice (live, initial, best or being written)."""
    weights = _DIGITS * model.dim * (_DIGIT_WIDTH + model.dim)
    return 9 * weights * 4 / MIB


def _dense_head(dim: int, items: int) -> float:
    """Content (live, initial, best or being written), its projection with its gradient, and a step's cosines."""
    return items * (3 * _CONTENT_DIM + 3 * dim + 3 * _TIGER_BATCH) * 4 / MIB


def _propagation(model: LightGcn, rows: int, users: int, items: int) -> float:
    """Vectors of all nodes: in, each layer, their sum, and as much again on the way back; both adjacency lists."""
    return ((users + items) * model.dim * 4 * 2 * (model.layers + 2) + rows * 16) / MIB


def _svd(rank: int, rows: int, users: int, items: int) -> float:
    """Copies of the basis, and both adjacency lists."""
    width = min(users, items, rank + OVERSAMPLING)
    return (items * width * 4 * _SVD_COPIES + rows * 16) / MIB
