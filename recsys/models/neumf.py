"""NeuMF (He et al. 2017, "Neural collaborative filtering")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.sparsity import Sparsity
from embeddings.tables import step_all
from embeddings.tables.sparse_table import SparseTable
from embeddings.tables.sparse_weights import SparseWeights, draw_layer
from embeddings.tables.spec import TableBytes, total_bytes
from embeddings.tables.table import Table
from recsys.dense_adam import DenseAdam
from recsys.models.mf import TwoTables

_NUMBERS_AT_ONCE = 1 << 22


class NeuMf(TwoTables):
    r"""A generalised inner product beside a perceptron, each over tables of its own.

    .. math:: s_{ui} = h^T [p_u^G \odot q_i^G;\ \phi_L(\dots \phi_1([p_u^M; q_i^M]))] + c, \qquad
              \phi_l(x) = ReLU(x W_l + b_l)

    (eq. 12, without the logistic function). A row of a table holds the vectors of both parts, G then M, so that the
    four tables are compressed by the two id maps. It is a :class:`recsys.retriever.Retriever` without vectors. W, b, h
    and c are trained by Adam with the learning rate of the users' table.

    Args:
        users: table of the users, of dimension 2 D.
        items: table of the items, of the same dimension.
        widths: of the perceptron's layers, one at least.
        generator: draws the initial W and h, Xavier uniform, and normal of the same variance where W is sparse; b and
            c are 0.
        sparsities: how W of each layer is stored; None for whole layers. h is always whole.

    Attributes:
        sparse: W transposed, where it is sparse; then ``matrices`` has only h.

    Raises:
        ValueError: The dimension is odd, a width is missing or below 1, or there is not one sparsity for each layer.
    """

    def __init__(
        self, users: Table, items: Table, *, widths: Sequence[int], generator: np.random.Generator,
        sparsities: Sequence[Sparsity] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(users, items)
        if users.dim % 2 or not widths or min(widths) < 1:
            raise ValueError(
                f"NeuMf needs tables of an even dimension and widths >= 1, got {users.dim} and {list(widths)}"
            )
        if sparsities is not None and len(sparsities) != len(widths):
            raise ValueError(f"NeuMf of {len(widths)} layers needs a sparsity for each, got {len(sparsities)}")
        self.widths = tuple(widths)
        half = users.dim // 2
        shapes = [*zip((users.dim, *widths), widths, strict=False), (half + widths[-1], 1)]
        self.sparse: SparseWeights | None = None
        whole = shapes
        if sparsities is not None:
            pairs = zip(shapes[:-1], sparsities, strict=True)
            self.sparse = SparseWeights([_sparse_xavier(generator, shape, sparsity) for shape, sparsity in pairs])
            self.sparse.set_lr(users.optimizer.lr)
            whole = shapes[-1:]
        self.matrices = nn.ParameterList(_xavier(generator, shape) for shape in whole)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(shape[1])) for shape in shapes)
        parameters = {f"matrix_{i}": part for i, part in enumerate(self.matrices)}
        parameters |= {f"bias_{i}": part for i, part in enumerate(self.biases)}
        self.adam = DenseAdam(parameters, users.optimizer.lr)

    @property
    def sparse_layers(self) -> list[SparseTable]:
        """W of each layer where it is sparse, else none."""
        return [] if self.sparse is None else self.sparse.tables

    def pair_scores(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of users with items.

        Args:
            users: float32 [B, 2 D].
            items: float32 [B, M, 2 D], M items for each user, or [M, 2 D] for all.

        Returns:
            Float32 [B, M].
        """
        half = users.shape[1] // 2
        first, *others = (weight.T for weight in self.layer_weights())
        of_users, of_items = users[:, half:] @ first[:half], items[..., half:] @ first[half:]
        hidden = functional.relu(of_users[:, None] + of_items + self.biases[0])
        for matrix, bias in zip(others, self.biases[1:-1], strict=True):
            hidden = functional.relu(hidden @ matrix + bias)
        weights = self.matrices[-1][:, 0]
        general = ((users[:, :half] * weights[:half])[:, None] * items[..., :half]).sum(-1)
        scores: Tensor = general + hidden @ weights[half:] + self.biases[-1]
        return scores

    def layer_weights(self) -> list[Tensor]:
        """W of each layer transposed, float32 [fan_out, fan_in], differentiable."""
        return [matrix.T for matrix in self.matrices[:-1]] if self.sparse is None else list(self.sparse)

    def layer_bytes(self) -> TableBytes:
        """Exact sizes of all that is no table."""
        whole = sum(parameter.nbytes for parts in (self.matrices, self.biases) for parameter in parts)
        return total_bytes(TableBytes(whole, self.adam.bytes()), *(table.bytes() for table in self.sparse_layers))

    def use_sparse(self, weights: SparseWeights) -> None:
        """Let these stand for W, which is forgotten; for a model that is not trained any more."""
        self.sparse = weights
        self.matrices = nn.ParameterList(self.matrices[-1:])

    def step(self) -> None:
        """Apply the gradients to the tables, and to the perceptron by Adam."""
        step_all([*self.tables, *self.sparse_layers])
        self.adam.step()

    @torch.no_grad()
    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items], without gradient, block by block."""
        user = self.users.vectors(torch.from_numpy(np.ascontiguousarray(users, dtype=np.int64)))
        items, out = self.items.vectors(), torch.empty(len(users), self.num_items)
        widest = max(*self.widths, self.items.dim)
        span = max(1, min(self.num_items, _NUMBERS_AT_ONCE // widest))
        rows = max(1, _NUMBERS_AT_ONCE // (widest * span))
        for top in range(0, len(users), rows):
            for left in range(0, self.num_items, span):
                out[top : top + rows, left : left + span] = self.pair_scores(
                    user[top : top + rows], items[left : left + span]
                )
        return out


def _xavier(generator: np.random.Generator, shape: tuple[int, int]) -> nn.Parameter:
    bound = math.sqrt(6 / sum(shape))
    return nn.Parameter(torch.from_numpy(generator.uniform(-bound, bound, shape).astype(np.float32)))


def _sparse_xavier(generator: np.random.Generator, shape: tuple[int, int], sparsity: Sparsity) -> SparseTable:
    fan_in, fan_out = shape
    return draw_layer(fan_out, fan_in, sparsity, std=math.sqrt(2 / sum(shape)), generator=generator)
