"""RQ-VAE: an encoder whose output is residually quantised, trained to reconstruct (Zeghidour et al. 2021; TIGER)."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from embeddings import atomic
from embeddings.one_thread import one_thread
from embeddings.semantic_id.codes import Codes
from embeddings.semantic_id.residual import ResidualQuantiser, fit_residual
from embeddings.semantic_id.sinkhorn import balanced_assignment
from embeddings.spectral import Matrix


@dataclasses.dataclass(frozen=True)
class RqVaeSettings:
    """How an RQ-VAE is built and trained; the defaults are TIGER's sizes with a shorter training.

    Attributes:
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        latent: columns of what is quantised.
        beta: weight of the commitment term.
        epochs: passes over the items.
        batch_size: items a step.
        lr: of AdamW.
        sinkhorn: entropy of the balanced assignment of the last level in training, 0 for none (LC-Rec: 0.003).
    """

    hidden: tuple[int, ...] = (512, 256, 128)
    latent: int = 32
    beta: float = 0.25
    epochs: int = 100
    batch_size: int = 1024
    lr: float = 1e-3
    sinkhorn: float = 0.003


class RqVae(nn.Module):
    """Encoder, codebooks, decoder.

    Args:
        dim: columns D of the vectors.
        widths: codes of each level.
        settings: sizes.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, widths: tuple[int, ...], settings: RqVaeSettings) -> None:
        super().__init__()
        sizes = (dim, *settings.hidden, settings.latent)
        self.settings, self.widths = settings, widths
        self.encoder, self.decoder = _mlp(sizes), _mlp(sizes[::-1])
        self.books = nn.ParameterList(torch.zeros(width, settings.latent) for width in widths)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def latents(self, vectors: Tensor) -> Tensor:
        """Float32 [B, latent] of float32 [B, D]."""
        latents: Tensor = self.encoder((vectors - self.mean) / self.scale)
        return latents

    def loss(self, vectors: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """``|x - x'|^2 + sum_l |sg[r_l] - e_l|^2 + beta |r_l - sg[e_l]|^2``, summed over columns, mean over items.

        The straight-through estimator passes the gradient of the decoder to the encoder.

        Returns:
            The loss, the codes int64 [B, L] and the residuals [B, latent] that each level coded.
        """
        inputs = (vectors - self.mean) / self.scale
        latents = self.encoder(inputs)
        left, residuals, codes = latents, [], []
        total = torch.zeros_like(latents)
        penalty = latents.new_zeros(())
        for level, book in enumerate(self.books):
            residuals.append(left.detach())
            code = self._assign(left.detach(), book.detach(), last=level == len(self.books) - 1)
            chosen = book[code]
            penalty = penalty + (left.detach() - chosen).square().sum(1).mean()
            penalty = penalty + self.settings.beta * (left - chosen.detach()).square().sum(1).mean()
            left, total = left - chosen.detach(), total + chosen
            codes.append(code)
        quantised = latents + (total - latents).detach()
        reconstruction = (inputs - self.decoder(quantised)).square().sum(1).mean()
        return reconstruction + penalty, torch.stack(codes, dim=1), residuals

    def _assign(self, left: Tensor, book: Tensor, *, last: bool) -> Tensor:
        distance = torch.cdist(left, book).square()
        if last and self.settings.sinkhorn > 0:
            return balanced_assignment(distance, self.settings.sinkhorn)
        return distance.argmin(1)

    def quantiser(self) -> ResidualQuantiser:
        """The codebooks, for latents."""
        books = tuple(book.detach().numpy().copy() for book in self.books)
        return ResidualQuantiser(books, np.zeros(self.settings.latent, dtype=np.float32))

    @torch.no_grad()
    def encode(self, vectors: Matrix) -> Codes:
        """Codes int32 [N, L] of float32 [N, D], the nearest at every level."""
        return self.quantiser().encode(self._latents(vectors))

    @torch.no_grad()
    def last_cost(self, vectors: Matrix, codes: Codes) -> npt.NDArray[np.float32]:
        """See :meth:`ResidualQuantiser.last_cost`."""
        return self.quantiser().last_cost(self._latents(vectors), codes)

    @torch.no_grad()
    def decode(self, codes: Codes) -> Matrix:
        """Float32 [N, D] that the codes stand for."""
        with one_thread():
            left = torch.from_numpy(self.quantiser().decode(codes))
            decoded: Matrix = (self.decoder(left) * self.scale + self.mean).numpy()
        return decoded

    def _latents(self, vectors: Matrix) -> Matrix:
        if vectors.shape[1] != self.mean.numel():
            raise ValueError(f"the encoder takes vectors of {self.mean.numel()} columns, got {vectors.shape[1]}")
        with one_thread():
            latents: Matrix = self.latents(torch.from_numpy(np.ascontiguousarray(vectors))).numpy()
        return latents

    def save(self, path: Path) -> None:
        """Write weights and sizes to ``path`` as safetensors, atomically."""
        header = {"rq_vae": json.dumps({"settings": dataclasses.asdict(self.settings), "widths": self.widths})}
        atomic.write_bytes(path, safetensors.torch.save(dict(self.state_dict()), metadata=header))

    @classmethod
    def load(cls, path: Path) -> RqVae:
        """Read what :meth:`save` wrote."""
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["rq_vae"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        settings = facts["settings"] | {"hidden": tuple(facts["settings"]["hidden"])}
        model = cls(tensors["mean"].numel(), tuple(facts["widths"]), RqVaeSettings(**settings))
        model.load_state_dict(tensors)
        return model


def fit_rq_vae(
    vectors: Matrix, widths: tuple[int, ...], settings: RqVaeSettings, generator: np.random.Generator
) -> tuple[RqVae, Codes]:
    """Train an RQ-VAE: k-means of the first latents starts the codebooks, dead codes restart after each epoch.

    Args:
        vectors: float32 [N, D]; N >= each width. They are centred and scaled to mean squared length D.
        widths: codes of each level.
        settings: of the network and its training.
        generator: draws weights, order and restarts.

    Returns:
        The network and the codes int32 [N, L] of the items.

    Raises:
        ValueError: There are fewer items than codes in a level, or the training diverged.
    """
    with one_thread():
        model = RqVae(vectors.shape[1], widths, settings)
        _initialise(model, vectors, generator)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
        inputs = torch.from_numpy(np.ascontiguousarray(vectors))
        for epoch in range(settings.epochs):
            used = [torch.zeros(width, dtype=torch.bool) for width in widths]
            residuals: list[Tensor] = []
            for batch in np.array_split(generator.permutation(len(vectors)), -(-len(vectors) // settings.batch_size)):
                loss, codes, residuals = model.loss(inputs[torch.from_numpy(batch)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                for level, level_used in enumerate(used):
                    level_used[codes[:, level]] = True
            if not torch.isfinite(loss):
                raise ValueError(f"the RQ-VAE diverged in epoch {epoch + 1}: the loss is {loss.item()}; lower lr")
            if epoch + 1 < settings.epochs:
                _restart(model, used, residuals, generator)
    return model, model.encode(vectors)


def _initialise(model: RqVae, vectors: Matrix, generator: np.random.Generator) -> None:
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = float(np.sqrt(np.mean((vectors - mean) ** 2, dtype=np.float64)))
    model.mean.copy_(torch.from_numpy(mean))
    model.scale.fill_(max(deviation, 1e-12))
    with torch.no_grad():
        for part in (model.encoder, model.decoder):
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    drawn = generator.standard_normal((layer.out_features, layer.in_features), dtype=np.float32)
                    layer.weight.copy_(torch.from_numpy(drawn) * (2 / layer.in_features) ** 0.5)
                    layer.bias.zero_()
        latents = model._latents(vectors)
        start, _ = fit_residual(latents - latents.mean(axis=0), model.widths, generator)
        for level, book in enumerate(start.codebooks):
            model.books[level].copy_(torch.from_numpy(book + (latents.mean(axis=0) if level == 0 else 0)))


@torch.no_grad()
def _restart(model: RqVae, used: list[Tensor], residuals: list[Tensor], generator: np.random.Generator) -> None:
    """Move codes without an item to residuals of random items of the last batch (Singh et al. 2024, section 3.1)."""
    for book, level_used, left in zip(model.books, used, residuals, strict=True):
        dead = torch.nonzero(~level_used).ravel()
        chosen = generator.integers(0, len(left), dead.numel())
        book[dead] = left[torch.from_numpy(chosen)]


def _mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
