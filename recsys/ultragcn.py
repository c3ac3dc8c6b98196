"""UltraGCN (Mao et al. 2021): matrix factorisation with the constraints that infinite propagation would meet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from recsys.models.mf import MatrixFactorization
from recsys.objective import Objective
from recsys.samplers import Draw, FloatArray, IntArray
from recsys.settings import FitSettings

_BLOCK_ITEMS = 512


class UltraGcn(Objective):
    r"""Steps on the loss of UltraGCN ("UltraGCN: Ultra simplification of graph convolutional networks", eq. 8-14).

    For an interaction (u, i), its negatives j and the item's neighbours k,

    .. math:: -(w_1 + w_2 \beta_{ui}) \ln \sigma(s_{ui})
              - w \operatorname{mean}_j (w_3 + w_4 \beta_{uj}) \ln \sigma(-s_{uj})
              - \lambda \sum_k \omega_{ik} \ln \sigma(s_{uk}), \qquad
              \beta_{ui} = \frac{1}{d_u} \sqrt{\frac{d_u + 1}{d_i + 1}}

    as a mean over the batch. The paper sums over the batch: its gamma is the optimizer's ``weight_decay`` times the
    batch size.

    Args:
        model: with inner products as scores.
        train: csr [users, items].
        settings: whose loss is "ultragcn".
        seed: of the run.

    Raises:
        ValueError: bfloat16, dropout of users or groups of negatives are asked for, or the model propagates itself.
    """

    def __init__(self, model: MatrixFactorization, train: csr_array, settings: FitSettings, *, seed: int) -> None:
        if settings.precision != "float32":
            raise ValueError(f"the ultragcn loss needs train.precision float32, got {settings.precision}")
        if settings.loss.user_dropout or settings.negatives.group is not None:
            raise ValueError(
                "the ultragcn loss has no user_dropout, and its batches no groups: it needs user_dropout 0 and"
                f" negatives.group None, got {settings.loss.user_dropout} and {settings.negatives.group}"
            )
        if type(model) is not MatrixFactorization:
            raise ValueError(f"the ultragcn loss stands for propagation and needs model mf, got {type(model).__name__}")
        super().__init__(model, train, settings, seed=seed)
        self._constraints = settings.loss.constraints
        users = np.maximum(np.diff(train.indptr), 1).astype(np.float64)
        items = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float64)
        self._user_factor = torch.from_numpy((np.sqrt(users + 1) / users).astype(np.float32))
        self._item_factor = torch.from_numpy((1 / np.sqrt(items + 1)).astype(np.float32))
        self._neighbours, self._omega = item_neighbours(train, self._constraints.neighbours)

    def _step(self, users: IntArray, positives: IntArray, *counters: str | int) -> float:
        model, sampler = self._model, self._sampler
        assert sampler is not None
        draw, neighbours = sampler.draw(users, *counters), self._neighbours[positives]
        ids = np.concatenate([positives, draw.items.reshape(-1), neighbours.reshape(-1)])
        looked_up = [model.users(torch.from_numpy(users)), model.items(torch.from_numpy(ids))]
        leaves = [vectors.detach().requires_grad_() for vectors in looked_up]
        user, item = (model.represent(vectors) for vectors in leaves)
        parts = torch.split(item, [len(positives), draw.items.size, neighbours.size])
        value = constraint_loss(
            user,
            parts[0],
            parts[1].reshape(*draw.items.shape, -1),
            parts[2].reshape(*neighbours.shape, -1),
            self._weights(users, positives, draw),
            self._constraints.neighbour_weight,
        )
        value.backward()  # type: ignore[no-untyped-call]
        if self._settings.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves, self._settings.gradient_clip_norm)
        torch.autograd.backward(looked_up, [leaf.grad for leaf in leaves])
        model.users.step()
        model.items.step()
        return float(value.detach())

    def _weights(self, users: IntArray, positives: IntArray, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Of the positives [B], the negatives [B, M] and the neighbours [B, K]."""
        w1, w2, w3, w4 = self._constraints.weights
        user_B = self._user_factor[users]
        positive_B = w1 + w2 * user_B * self._item_factor[positives]
        negative_BM = w3 + w4 * user_B[:, None] * self._item_factor[draw.items]
        if draw.hits is not None:
            negative_BM[torch.from_numpy(draw.hits[0]), torch.from_numpy(draw.hits[1])] = 0.0
        negative_BM *= self._constraints.negative_weight / negative_BM.shape[1]
        return positive_B, negative_BM, torch.from_numpy(self._omega[positives])


def constraint_loss(
    user_BD: Tensor,
    positive_BD: Tensor,
    negative: Tensor,
    neighbour_BKD: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    neighbour_weight: float,
) -> Tensor:
    """Mean over the batch of the weighted logistic losses of :class:`UltraGcn`.

    Args:
        user_BD: float [B, D].
        positive_BD: float [B, D].
        negative: float [M, D] shared by the batch, or [B, M, D].
        neighbour_BKD: float [B, K, D], neighbours of the positives.
        weights: float [B], [B, M] and [B, K].
        neighbour_weight: lambda.
    """
    own_B = functional.softplus(-(user_BD * positive_BD).sum(-1)) * weights[0]
    scores_BM = user_BD @ negative.T if negative.ndim == 2 else torch.einsum("bd,bmd->bm", user_BD, negative)
    others_B = (functional.softplus(scores_BM) * weights[1]).sum(1)
    near_B = (functional.softplus(-torch.einsum("bd,bkd->bk", user_BD, neighbour_BKD)) * weights[2]).sum(1)
    return (own_B + others_B + neighbour_weight * near_B).mean()


def item_neighbours(train: csr_array, count: int) -> tuple[IntArray, FloatArray]:
    r"""The items that co-occur most with each item, and their weights (eq. 11-12).

    .. math:: \omega_{ij} = \frac{G_{ij}}{g_i - G_{ii}} \sqrt{\frac{g_i}{g_j}}, \qquad G = A^T A,\; g_i = \sum_k G_{ik}

    Args:
        train: csr [users, items].
        count: K, neighbours per item, the item itself not among them.

    Returns:
        int64 and float32 [items, K], best first, the lower index among equals; where an item has fewer, index 0 with
        weight 0.
    """
    binary = csr_array((np.ones(train.nnz, np.float64), train.indices, train.indptr), shape=train.shape)
    by_item, num_items = binary.T.tocsr(), train.shape[1]
    sums = by_item @ np.diff(binary.indptr).astype(np.float64)
    indices, weights = np.zeros((num_items, count), np.int64), np.zeros((num_items, count), np.float32)
    for first in range(0, num_items, _BLOCK_ITEMS):
        block = (by_item[first : first + _BLOCK_ITEMS] @ binary).tocsr()
        for row in range(block.shape[0]):
            span = slice(block.indptr[row], block.indptr[row + 1])
            _keep_best(first + row, block.indices[span], block.data[span], sums, (indices, weights))
    return indices, weights


def _keep_best(
    item: int,
    others: npt.NDArray[np.int32],
    common: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    out: tuple[IntArray, FloatArray],
) -> None:
    other = others != item
    rest = sums[item] - common[~other].sum()
    if not rest > 0:
        return
    omega = common[other] / rest * np.sqrt(sums[item] / sums[others[other]])
    best = np.lexsort((others[other], -omega))[: out[0].shape[1]]
    out[0][item, : len(best)] = others[other][best]
    out[1][item, : len(best)] = omega[best]
