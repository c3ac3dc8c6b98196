"""Adam for the parameters of a model that are not embedding tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from embeddings.tables.spec import TableBytes

BETAS, EPS = (0.9, 0.999), 1e-8


class DenseAdam(nn.Module):
    """Adam (Kingma and Ba 2015, algorithm 1) whose moments are buffers, so that they are part of a model's state.

    Args:
        parameters: by name; a name gives its buffers theirs.
        lr: learning rate.
    """

    steps: Tensor

    def __init__(self, parameters: Mapping[str, nn.Parameter], lr: float) -> None:
        super().__init__()
        self.lr = lr
        self._parameters_of = dict(parameters)
        for name, parameter in parameters.items():
            self.register_buffer(f"{name}_avg", torch.zeros_like(parameter))
            self.register_buffer(f"{name}_avg_sq", torch.zeros_like(parameter))
        self.register_buffer("steps", torch.tensor(0))

    def bytes(self) -> int:
        """Of the moments."""
        return sum(buffer.nbytes for name, buffer in self.named_buffers() if name != "steps")

    @torch.no_grad()
    def step(self) -> None:
        """Apply and forget the gradients since the last step; nothing where no parameter has one."""
        having = {name: p for name, p in self._parameters_of.items() if p.grad is not None}
        if not having:
            return
        self.steps += 1
        t = int(self.steps)
        for name, parameter in having.items():
            assert parameter.grad is not None
            average, squares = self.get_buffer(f"{name}_avg"), self.get_buffer(f"{name}_avg_sq")
            average.lerp_(parameter.grad, 1 - BETAS[0])
            squares.mul_(BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - BETAS[1])
            root = (squares / (1 - BETAS[1] ** t)).sqrt_().add_(EPS)
            parameter.addcdiv_(average, root, value=-self.lr / (1 - BETAS[0] ** t))
            parameter.grad = None


def layer_bytes(model: nn.Module, tables: Iterable[nn.Parameter]) -> TableBytes:
    """Exact sizes of all parameters of a model but its tables', and of the two moments that Adam keeps of each.

    Example:
        >>> embedding, layer = nn.Embedding(100, 8), nn.Linear(8, 1, bias=False)
        >>> layer_bytes(nn.ModuleList([embedding, layer]), embedding.parameters())
        TableBytes(weights=32, optimizer=64, map=0)
    """
    rows = {id(parameter) for parameter in tables}
    weights = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in rows)
    return TableBytes(weights, 2 * weights)
