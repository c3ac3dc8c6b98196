"""The models of a configuration: what they are trained with, and what each can be told."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.config_section import Section, TableModel
from pipelines.config_sparse import MixedDims, Sparse, SparseEntries
from pipelines.config_two_tower import TwoTower


class Bpr(Section):
    """Bayesian personalised ranking (Rendle et al. 2009)."""

    name: Literal["bpr"] = "bpr"


class LogLoss(Section):
    """Binary cross-entropy of positives and sampled negatives (He et al. 2017); the loss of neumf."""

    name: Literal["log_loss"] = "log_loss"


class SampledSoftmax(Section):
    """Softmax over the positive and sampled negatives; ``logq`` corrects for the sampling probability."""

    name: Literal["sampled_softmax"] = "sampled_softmax"
    temperature: float = Field(default=0.1, gt=0)
    logq: bool = False


class InBatchSoftmax(Section):
    """Softmax over the other positives of the batch; ``logq`` as in Yi et al. 2019."""

    name: Literal["in_batch_softmax"] = "in_batch_softmax"
    temperature: float = Field(default=0.1, gt=0)
    logq: bool = True


class DirectAu(Section):
    """Alignment and uniformity (Wang et al. 2022)."""

    name: Literal["directau"] = "directau"
    gamma: float = Field(default=1.0, ge=0)


class Bsl(Section):
    """Bilateral softmax (Wu et al. 2024)."""

    name: Literal["bsl"] = "bsl"
    temperature: float = Field(default=0.1, gt=0, description="of the negatives")
    positive_temperature: float | None = Field(default=None, gt=0, description="null: that of the negatives")
    exponent: float = Field(default=1.0, gt=0, description="weight of the negatives; the paper's tau_2 / tau_1")
    pooled: bool = Field(default=True, description="pool the positives that a user has in the batch")
    user_dropout: float = Field(default=0.0, ge=0, lt=1)


class AdapTau(Section):
    """Softmax with adaptive temperatures (Chen et al. 2023); for similarity cosine."""

    name: Literal["adap_tau"] = "adap_tau"
    warmup_epochs: int = Field(default=100, ge=0, description="epochs before the scores set the temperature")
    beta: float | None = Field(default=None, gt=0, description="user-wise temperatures; null: one for all users")
    quantile: float | None = Field(default=None, ge=0, le=1, description="of the users' losses; null: their mean")
    user_dropout: float = Field(default=0.0, ge=0, lt=1)


class CosineContrastive(Section):
    """Cosine contrastive loss of SimpleX (Mao et al. 2021); for similarity cosine."""

    name: Literal["ccl"] = "ccl"
    margin: float = Field(default=0.9, ge=-1, lt=1)
    negative_weight: float = Field(default=150.0, gt=0)
    user_dropout: float = Field(default=0.0, ge=0, lt=1)


class UltraGcn(Section):
    """Constraint losses of UltraGCN (Mao et al. 2021); for similarity dot."""

    name: Literal["ultragcn"] = "ultragcn"
    weights: tuple[float, float, float, float] = Field(default=(1e-6, 1.0, 1e-6, 1.0), description="w1, w2, w3, w4")
    negative_weight: float = Field(default=300.0, ge=0)
    neighbours: int = Field(default=10, ge=1)
    neighbour_weight: float = Field(default=5e-4, ge=0, description="lambda")


Loss = Annotated[
    Bpr | LogLoss | SampledSoftmax | InBatchSoftmax | DirectAu | Bsl | AdapTau | CosineContrastive | UltraGcn,
    Field(discriminator="name"),
]


class Negatives(Section):
    """How negatives are drawn."""

    name: Literal["uniform", "popularity"] = "uniform"
    count: int = Field(default=256, ge=1)
    shared: bool = Field(default=True, description="one draw per batch instead of one per positive")
    group: int | None = Field(default=None, ge=1, description="positives that share a draw; null: the whole batch")
    reject_positives: bool = False
    alpha: float = Field(
        default=1.0, gt=0, le=1, description="of popularity: an item is proposed by its interactions to this power"
    )

    @model_validator(mode="after")
    def _check_alpha(self) -> Negatives:
        if self.name == "uniform" and "alpha" in self.model_fields_set and self.alpha != 1.0:
            raise ValueError(f"alpha is for name: popularity, got {self.alpha} for uniform; remove it, or set that")
        return self


class Mf(TableModel):
    """Matrix factorisation over two embedding tables."""

    name: Literal["mf"] = "mf"
    similarity: Literal["dot", "cosine"] = "cosine"
    loss: Loss = SampledSoftmax()
    negatives: Negatives = Negatives()
    sparse: Sparse | None = Field(default=None, description="store only a share of the tables' entries")
    mixed_dims: MixedDims | None = Field(default=None, description="search which entries to store")
    init: Literal["normal", "spectral"] = Field(
        default="normal", description="spectral: singular vectors of the training graph, scaled to init_std"
    )


class Ssl(Section):
    """Self-supervised term of a graph model: SGL (Wu et al. 2021), SimGCL, XSimGCL (Yu et al. 2022, 2023)."""

    name: Literal["sgl", "simgcl", "xsimgcl"]
    weight: float = Field(default=0.1, ge=0)
    temperature: float = Field(default=0.2, gt=0)
    noise: float = Field(default=0.1, ge=0, description="length of the noise in each layer, for simgcl and xsimgcl")
    drop: float = Field(default=0.1, ge=0, lt=1, description="share of the edges dropped, for sgl")
    layer: int = Field(default=1, ge=1, description="layer compared with the mean, for xsimgcl")


class GraphModel(Mf):
    """What models have that propagate the tables' vectors over the training graph."""

    similarity: Literal["dot", "cosine"] = "dot"
    layers: int = Field(default=3, ge=0)
    l2: float = Field(default=1e-4, ge=0, description="penalty on the layer-0 vectors of the batch")
    ssl: Ssl | None = None


class LightGcn(GraphModel):
    """Mean of the propagated vectors of all layers (He et al. 2020)."""

    name: Literal["lightgcn"] = "lightgcn"  # type: ignore[assignment]
    norm_exponent: float = Field(
        default=0.0, ge=0, description="p: under cosine an item is served with length |v|^p; 1 is the inner product"
    )


class Ngcf(GraphModel):
    """Propagation with weight matrices; the layers are concatenated (Wang et al. 2019)."""

    name: Literal["ngcf"] = "ngcf"  # type: ignore[assignment]
    l2: float = Field(default=1e-5, ge=0, description="penalty on the layer-0 vectors of the batch")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="message dropout")


class Kgat(Mf):
    """Attentive propagation over interactions and ``dataset.knowledge_graph`` (Wang et al. 2019, KGAT)."""

    name: Literal["kgat"] = "kgat"  # type: ignore[assignment]
    similarity: Literal["dot", "cosine"] = "dot"
    widths: tuple[int, ...] = Field(default=(64, 32, 16), description="dimension of each layer after layer 0")
    l2: float = Field(default=1e-5, ge=0, description="penalty on the layer-0 vectors of the batch")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="message dropout")


class SimpleX(Mf):
    """Matrix factorisation with the users' histories pooled into their vectors (Mao et al. 2021)."""

    name: Literal["simplex"] = "simplex"  # type: ignore[assignment]
    loss: Loss = CosineContrastive()
    user_weight: float = Field(default=0.5, ge=0, le=1, description="g: of the user's own vector, the rest pooled")
    pooling: Literal["mean", "attention"] = "mean"


class NeuMf(Mf):
    """Generalised inner product beside a perceptron (He et al. 2017); each part has ``dim`` numbers in both tables."""

    name: Literal["neumf"] = "neumf"  # type: ignore[assignment]
    similarity: Literal["dot"] = "dot"
    loss: LogLoss = LogLoss()
    widths: tuple[int, ...] = Field(default=(64, 64), min_length=1, description="of the perceptron's layers")
    sparse_layers: SparseEntries | None = Field(
        default=None, description="store only a share of these layers' weights; the output's stay"
    )

    @property
    def table_dim(self) -> int:
        """Those of both parts."""
        return 2 * self.dim


class Popularity(Section):
    """Most popular items of the training split."""

    name: Literal["popularity"] = "popularity"


class ClosedForm(Section):
    """A model without epochs. ``grid`` maps parameters to the values that are tried; train.selection decides."""

    grid: dict[str, tuple[float | str, ...]] = Field(default={})

    @model_validator(mode="after")
    def _grid_is_valid(self) -> Self:
        allowed = [name for name in type(self).model_fields if name not in ("name", "grid")]
        for name, values in self.grid.items():
            if name not in allowed:
                raise ValueError(f"grid has {name!r}, must be one of {', '.join(allowed)}")
            if not values:
                raise ValueError(f"grid.{name} has no value to try; give some, or remove it")
        self.points()
        return self

    def points(self) -> list[Self]:
        """The model at every point of the grid, itself where there is none; the last parameter changes fastest."""
        own = self.model_dump(exclude={"grid"})
        values = itertools.product(*self.grid.values())
        whole = [own | dict(zip(self.grid, point, strict=True)) for point in values]
        return [type(self).model_validate(point) for point in whole] if self.grid else [self]


class ItemKnn(ClosedForm):
    """Cosine item neighbours with shrinkage."""

    name: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(default=100, ge=1)
    shrinkage: float = Field(default=10.0, ge=0)


class Ials(ClosedForm):
    """Implicit alternating least squares (Rendle et al. 2022); trained whole, without tables or epochs."""

    name: Literal["ials"] = "ials"
    dim: int = Field(default=64, ge=1)
    iterations: int = Field(default=16, ge=1)
    regularization: float = Field(default=0.003, gt=0)
    unobserved_weight: float = Field(default=0.1, gt=0)
    exponent: float = Field(default=1.0, ge=0, description="nu: how far regularisation follows the frequency")
    cg_steps: int | None = Field(default=3, ge=1, description="conjugate gradients per system; null: exact, Cholesky")
    init_std: float = Field(default=0.1, gt=0)


class Ease(ClosedForm):
    """Linear item-item model (Steck 2019); low-rank where the dense solution needs more than ``memory_gib``."""

    name: Literal["ease"] = "ease"
    l2: float = Field(default=200.0, gt=0)
    method: Literal["auto", "dense", "low_rank"] = "auto"
    rank: int = Field(default=512, ge=1)
    memory_gib: float = Field(default=8.0, gt=0)


class Slim(ClosedForm):
    """Sparse non-negative item-item weights (Ning and Karypis 2011); penalties are in users."""

    name: Literal["slim"] = "slim"
    l1: float = Field(default=1.0, gt=0)
    l2: float = Field(default=10.0, ge=0)


class GfCf(ClosedForm):
    """Linear and ideal low-pass graph filter (Shen et al. 2021)."""

    name: Literal["gf_cf"] = "gf_cf"
    rank: int = Field(default=256, ge=1)
    alpha: float = Field(default=0.3, ge=0)
    exponent: float | None = Field(default=None, ge=0, le=1, description="of the degrees; none: 0 and 1/2, the paper's")


class ChebyCf(ClosedForm):
    """Chebyshev graph filter (Kim et al. 2025)."""

    name: Literal["cheby_cf"] = "cheby_cf"
    order: int = Field(default=8, ge=1)
    flatness: float = Field(default=1.5, ge=0)
    rank: int = Field(default=512, ge=1)
    alpha: float = Field(default=0.2, ge=0)
    exponent: float = Field(default=0.4, ge=0, le=1)


class Bspm(ClosedForm):
    """Graph filter that blurs, then sharpens (Choi et al. 2023)."""

    name: Literal["bspm"] = "bspm"
    rank: int = Field(default=256, ge=1)
    beta: float = Field(default=0.3, ge=0)
    sharpening: float = Field(default=2.5, ge=0)
    steps: int = Field(default=1, ge=1)


Model = (
    Mf
    | LightGcn
    | Ngcf
    | Kgat
    | SimpleX
    | NeuMf
    | TwoTower
    | Popularity
    | ItemKnn
    | Ials
    | Ease
    | Slim
    | GfCf
    | ChebyCf
    | Bspm
)


def is_searched(model: Section) -> bool:
    """Whether parameters of a model are chosen by a grid."""
    return isinstance(model, ClosedForm) and bool(model.grid)
