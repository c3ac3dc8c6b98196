"""Memory that fitting a model takes, by what it allocates: MiB beside the training matrix."""

from __future__ import annotations

import math

from pipelines.config_ensemble import Ensemble
from pipelines.config_models import Bspm, ChebyCf, Ease, GfCf, GraphModel, Ials, ItemKnn, Model, Popularity, Slim
from pipelines.config_rpg import Rpg
from pipelines.config_section import TableModel
from pipelines.config_semantic import (
    CategoryIds,
    CollaborativeIds,
    Opq,
    RandomIds,
    RqKmeans,
    RqVae,
    SemanticIds,
    SequentialIds,
)
from pipelines.config_sequence import SequenceModel
from pipelines.config_tiger import Tiger
from pipelines.frozen_settings import in_force
from recsys.models.ease import dense_gib
from recsys.truncated_svd import OVERSAMPLING

MIB = 2**20
_STATE_PER_WEIGHT = {"sgd": 0.0, "adagrad": 1.0, "rowwise_adagrad": 0.0, "adam": 2.0, "lazy_adam": 2.0}
_SVD_COPIES = 6
"""The basis, its image, three of the Chebyshev recurrence, and one while they are made orthonormal."""
_SLIM_NEIGHBOURS = 200
_PAIR_BYTES = 12
"""Of an entry of a sparse similarity: index and value, the value twice while rows are cut."""

_TIGER_BATCH = 256
"""Targets of a step, as usual."""
_USUAL_LEVELS, _USUAL_WIDTH = 4, 256
"""Of codes whose levels the data decides; the width also of the digit that tells items of one code apart."""
_CONTENT_DIM = 128
"""Columns of the items' content, as usual."""


def fitting_mib(
    model: Model | SequenceModel | Tiger | Rpg | Ensemble, rows: int, users: int, items: int, widths: tuple[int, ...]
) -> float:
    """Peak MiB of fitting ``model`` on ``rows`` interactions of so many users and items.

    Args:
        model: what is fitted.
        rows: interactions.
        users: distinct ones.
        items: distinct ones.
        widths: codes of each level of the items' semantic ids, see :func:`code_widths`; empty without such ids.
    """
    match model:
        case TableModel():
            own = _propagation(model, rows, users, items) if isinstance(model, GraphModel) else 0.0
            found = _tables(model, 0 if model.items_only else users, items) + own
        case Tiger():
            head = _dense_head(model.dim, items) if model.dense is not None else 0.0
            found = _transformer(model, len(widths)) + head
        case Rpg():
            found = _tokens(model, widths, items)
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


def code_widths(settings: SemanticIds | None, items: int) -> tuple[int, ...]:
    """Codes of each level of the semantic ids of ``items`` items; what only the data tells is taken as usual."""
    if settings is None:
        return ()
    settings = in_force(settings)
    match settings.tokeniser:
        case RqKmeans(widths=widths) | RqVae(widths=widths) | RandomIds(widths=widths):
            found = widths
        case Opq(digits=digits, width=width):
            found = (width,) * digits
        case SequentialIds(width=width):
            found = (width,) * math.ceil(math.log(max(items, 2), width))
        case CollaborativeIds() | CategoryIds():
            found = (_USUAL_WIDTH,) * _USUAL_LEVELS
    return (*found, settings.digit_width or _USUAL_WIDTH) if settings.collisions == "digit" else found


def _tables(model: TableModel, users: int, items: int) -> float:
    """A full table, the largest: weights and optimizer state, thrice (live, initial, best or being written)."""
    weights = (users + items + 2) * model.row_bytes
    return 3 * weights * (1 + _STATE_PER_WEIGHT[model.optimizer.name]) / MIB


def _transformer(model: Tiger, levels: int) -> float:
    """Parameters of both stacks with Adam's moments, thrice, and what a step keeps of its longest sequences."""
    attention = 4 * model.dim * model.heads * model.head_dim
    weights = model.layers * (3 * attention + 4 * model.dim * model.inner)
    tokens = _TIGER_BATCH * model.max_items * levels
    step = tokens * model.layers * 2 * (model.inner + 6 * model.dim)
    return (9 * weights + step) * 4 / MIB


def _tokens(model: Rpg, widths: tuple[int, ...], items: int) -> float:
    """Tokens and heads of the digits with Adam's moments, thrice (live, initial, best or being written).

    The digits of every item are there as codes and as rows of the table.
    """
    weights = model.dim * (sum(widths) + len(widths) * model.dim)
    return (9 * weights + 2 * items * len(widths)) * 4 / MIB


def _dense_head(dim: int, items: int) -> float:
    """Content (live, initial, best or being written), its projection with its gradient, and a step's cosines."""
    return items * (3 * _CONTENT_DIM + 3 * dim + 3 * _TIGER_BATCH) * 4 / MIB


def _propagation(model: GraphModel, rows: int, users: int, items: int) -> float:
    """Vectors of all nodes: in, each layer, their sum, and as much again on the way back; both adjacency lists."""
    return ((users + items) * model.dim * 4 * 2 * (model.layers + 2) + rows * 16) / MIB


def _svd(rank: int, rows: int, users: int, items: int) -> float:
    """Copies of the basis, and both adjacency lists."""
    width = min(users, items, rank + OVERSAMPLING)
    return (items * width * 4 * _SVD_COPIES + rows * 16) / MIB
