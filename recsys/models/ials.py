"""Implicit alternating least squares (Hu et al. 2008; Rendle et al. 2022, "Revisiting the performance of iALS")."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.ials_kernel import Floats, System, gram, solve_rows
from recsys.rng import generator
from recsys.selection import Masks


@dataclasses.dataclass(frozen=True)
class IalsSettings:
    r"""Parameters of the objective and its solver.

    .. math:: \sum_{(u,i) \in S} (1 - w_u h_i)^2 + \alpha_0 \sum_{u,i} (w_u h_i)^2
              + \lambda \sum_u (|S_u| + \alpha_0 |I|)^\nu |w_u|^2 + \lambda \sum_i (|S_i| + \alpha_0 |U|)^\nu |h_i|^2

    (Rendle et al. 2022, eq. 1-5). With nu = 0 it is Hu's objective with confidence ``(1 + alpha_0) / alpha_0`` and
    regularisation ``lambda (1 + alpha_0) / alpha_0``, its vectors being ``sqrt(1 + alpha_0)`` times as long.

    Attributes:
        dim: D.
        iterations: each solves all users, then all items.
        regularization: lambda, > 0.
        unobserved_weight: alpha_0, > 0.
        exponent: nu, 0 regularises every vector alike, 1 in proportion to its frequency.
        cg_steps: steps of conjugate gradients from the last value; None solves each system exactly, by Cholesky.
        init_std: of a random vector's length, roughly: its numbers have ``init_std / sqrt(dim)``.
    """

    dim: int = 64
    iterations: int = 16
    regularization: float = 0.003
    unobserved_weight: float = 0.1
    exponent: float = 1.0
    cg_steps: int | None = 3
    init_std: float = 0.1


class Ials:
    """Scores by the inner product of a user's and an item's vector; a :class:`recsys.retriever.VectorRetriever`.

    Args:
        users: float32 [num_users, D].
        items: float32 [num_items, D].
    """

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self.users = users
        self.items = items
        self.num_users, self.num_items = len(users), len(items)

    @classmethod
    def fit(
        cls,
        train: csr_array,
        settings: IalsSettings | None = None,
        *,
        seed: int = 0,
        on_iteration: Callable[[int, Ials], None] | None = None,
    ) -> Ials:
        """Alternate between users and items; the same bits for any number of threads.

        Args:
            train: csr [users, items]; every stored entry counts as one observation.
            settings: defaults are those of Rendle et al. for their smallest search.
            seed: of the random vectors.
            on_iteration: called after each iteration with its 0-based number and the model so far.

        Raises:
            ValueError: A parameter is out of range.
        """
        settings = settings or IalsSettings()
        _check(settings)
        sides = [_Side(train, settings), _Side(train.T.tocsr(), settings)]
        scale = settings.init_std / np.sqrt(settings.dim)
        vectors = [
            generator(seed, "ials", name).standard_normal((side.count, settings.dim), dtype=np.float32)
            * np.float32(scale)
            for name, side in zip(("users", "items"), sides, strict=True)
        ]
        for iteration in range(settings.iterations):
            for place in (0, 1):
                vectors[place] = sides[place].solve(vectors[place], vectors[1 - place])
            if on_iteration is not None:
                on_iteration(iteration, cls(*(torch.from_numpy(array.copy()) for array in vectors)))
        return cls(*(torch.from_numpy(array) for array in vectors))

    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D]."""
        return self.users[torch.from_numpy(np.ascontiguousarray(users, dtype=np.int64))]

    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D]."""
        return self.items[items.start : items.stop : items.step]

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return self.user_vectors(users) @ self.items.T

    def objective(self, train: csr_array, settings: IalsSettings) -> float:
        """The value that :meth:`fit` minimises, see :class:`IalsSettings`, without ever forming all scores."""
        users, items = self.users.numpy(), self.items.numpy()
        rows = np.repeat(np.arange(train.shape[0]), np.diff(train.indptr))
        spans = range(0, len(rows), 1 << 16)
        scores = [(users[rows[a : a + (1 << 16)]] * items[train.indices[a : a + (1 << 16)]]).sum(1) for a in spans]
        missing = sum(float(((1.0 - part.astype(np.float64)) ** 2).sum()) for part in scores)
        everything = settings.unobserved_weight * float((gram(users) * gram(items)).sum())
        penalty = sum(
            float(_penalty(degrees, others, settings).astype(np.float64) @ (vectors.astype(np.float64) ** 2).sum(1))
            for degrees, others, vectors in (
                (np.diff(train.indptr), self.num_items, users),
                (np.bincount(train.indices, minlength=self.num_items), self.num_users, items),
            )
        )
        return missing + everything + penalty

    def state(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file, see :meth:`from_state`."""
        return {"users": self.users, "items": self.items}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Ials:
        """The model whose :meth:`state` this is."""
        return cls(state["users"], state["items"])


class _Side:
    """The equations of the users, or of the items."""

    def __init__(self, matrix: csr_array, settings: IalsSettings) -> None:
        self.count = matrix.shape[0]
        self.settings = settings
        self.observed = Masks(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32))
        self.penalty = _penalty(np.diff(matrix.indptr), matrix.shape[1], settings)

    def solve(self, mine: Floats, others: Floats) -> Floats:
        weighted = (self.settings.unobserved_weight * gram(others)).astype(np.float32)
        return solve_rows(System(self.observed, others, weighted, self.penalty), mine, self.settings.cg_steps)


def _penalty(degrees: npt.NDArray[np.integer], others: int, settings: IalsSettings) -> Floats:
    mass = degrees + settings.unobserved_weight * others
    return (settings.regularization * mass**settings.exponent).astype(np.float32)


def _check(settings: IalsSettings) -> None:
    positive = {
        "dim": settings.dim,
        "iterations": settings.iterations,
        "regularization": settings.regularization,
        "unobserved_weight": settings.unobserved_weight,
        "cg_steps": 1 if settings.cg_steps is None else settings.cg_steps,
        "init_std": settings.init_std,
    }
    wrong = [f"{name} {value}" for name, value in positive.items() if not value > 0]
    if wrong:
        raise ValueError(f"iALS needs values above 0, got {', '.join(wrong)}")
