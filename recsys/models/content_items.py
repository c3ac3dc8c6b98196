"""Item vectors made of content, where a table would have a row for each item."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embeddings.tables.spec import TableBytes
from recsys.dense_adam import DenseAdam
from recsys.mlp import Mlp


class ContentItems(nn.Module):
    """Frozen content vectors behind a trained projection: an item without any event has a vector as good as others'.

    It is used like a :class:`embeddings.tables.table.Table`. The content is part of the state, so that no training
    goes on from that of other content.

    Args:
        content: float32 [N, F].
        network: from F to D columns.
        lr: of its Adam.

    Raises:
        ValueError: The network does not take F columns.
    """

    content: Tensor

    def __init__(self, content: Tensor, network: Mlp, *, lr: float = 1e-3) -> None:
        super().__init__()
        if content.ndim != 2 or content.dtype != torch.float32 or content.shape[1] != network.widths[0]:
            raise ValueError(
                f"content must be float32 [N, {network.widths[0]}], the width of its network, got {content.dtype}"
                f" {list(content.shape)}"
            )
        self.dim, self.num_ids, self.num_rows = network.widths[-1], len(content), len(content)
        self.register_buffer("content", content)
        self.network = network
        self.adam = DenseAdam({name.replace(".", "_"): p for name, p in network.named_parameters()}, lr)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of items: int64 [n] to float32 [n, D]."""
        projected: Tensor = self.network(self.content[ids])
        return projected

    @torch.no_grad()
    def vectors(self, ids: Tensor) -> Tensor:
        """As :meth:`forward`, without autograd."""
        return self.forward(ids)

    def step(self) -> None:
        """Apply the gradient of the last backward pass."""
        self.adam.step()

    def bytes(self) -> TableBytes:
        """Content and projection, and the optimizer's moments."""
        trained = sum(parameter.nbytes for parameter in self.network.parameters())
        return TableBytes(self.content.nbytes + trained, 2 * trained, 0)
