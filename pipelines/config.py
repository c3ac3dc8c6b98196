"""Typed configuration: YAML in, frozen objects out, every mistake reported at once."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from embeddings.names import CompressorName

FeatureKind = Literal["categorical", "numeric", "list", "text"]


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(Section):
    """Names of the columns of the interaction file(s).

    A column of the usual name (``rating``, ``movie_id``, ...) is taken where the name here is the default and absent.
    """

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = None
    timestamp: str | None = None
    position: str | None = None
    split: str | None = None


class Entities(Section):
    """A users or items file. ``source`` is relative to the dataset's source directory."""

    source: str
    id: str
    title: str | None = None
    columns_without_header: tuple[str, ...] | None = Field(default=None, min_length=1)
    features: dict[str, FeatureKind] = {}


class Filters(Section):
    """What is dropped before the split, in this order: ratings, duplicates, users and items with too many, k-core."""

    min_rating: float | None = None
    max_rating: float | None = None
    deduplicate: Literal["last", "first", "none"] = "last"
    user_core: int = Field(default=0, ge=0)
    item_core: int = Field(default=0, ge=0)
    max_user_interactions: int | None = Field(default=None, ge=1)
    max_item_interactions: int | None = Field(default=None, ge=1)


class Split(Section):
    """How interactions become train, valid and test. ``auto``: given, else global time, else per-user ratio."""

    method: Literal["auto", "given", "global_time", "leave_last_n", "user_ratio", "random_ratio"] = "auto"
    valid: float = Field(default=0.1, gt=0, lt=1, description="share of the interactions (of train, when given)")
    test: float = Field(default=0.2, gt=0, lt=1)
    n: int = Field(default=1, ge=1, description="leave_last_n: interactions per user in test, and in valid")
    seed: int = 0


class Dataset(Section):
    """Where raw events are and how they become a dataset."""

    name: str
    source: str = Field(description="file, glob or directory; `sample:anime`; `data:gowalla` = $RECSYS_DATA/gowalla")
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "recbole", "lightgcn"] = "auto"
    interactions: str = Field(default="interactions.parquet", description="file or glob inside a source directory")
    columns: Columns = Columns()
    columns_without_header: tuple[str, ...] | None = Field(
        default=None, min_length=2, description="names of the columns of csv or tsv files whose first line is an event"
    )
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns", "iso"] = "auto"
    users: Entities | None = None
    items: Entities | None = None
    filters: Filters = Filters()
    id_type: Literal["auto", "integer", "string"] = Field(default="auto", description="auto: told from the first rows")
    split: Split = Split()
    on_error: Literal["fail", "quarantine"] = "fail"


class Optimizer(Section):
    """Optimizer of the embedding tables."""

    name: Literal["sgd", "adagrad", "rowwise_adagrad", "adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class Bpr(Section):
    """Bayesian personalised ranking (Rendle et al. 2009)."""

    name: Literal["bpr"] = "bpr"


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
    Bpr | SampledSoftmax | InBatchSoftmax | DirectAu | Bsl | AdapTau | CosineContrastive | UltraGcn,
    Field(discriminator="name"),
]


class Negatives(Section):
    """How negatives are drawn."""

    name: Literal["uniform", "popularity"] = "uniform"
    count: int = Field(default=256, ge=1)
    shared: bool = Field(default=True, description="one draw per batch instead of one per positive")
    reject_positives: bool = False


class Mf(Section):
    """Matrix factorisation over two embedding tables."""

    name: Literal["mf"] = "mf"
    dim: int = Field(default=64, ge=1)
    similarity: Literal["dot", "cosine"] = "cosine"
    loss: Loss = SampledSoftmax()
    negatives: Negatives = Negatives()
    optimizer: Optimizer = Optimizer()
    backend: Literal["torch", "fbgemm"] = "torch"
    init_std: float = Field(default=0.1, gt=0)


class Ssl(Section):
    """Self-supervised term of a graph model: SGL (Wu et al. 2021), SimGCL, XSimGCL (Yu et al. 2022, 2023)."""

    name: Literal["sgl", "simgcl", "xsimgcl"]
    weight: float = Field(default=0.1, ge=0)
    temperature: float = Field(default=0.2, gt=0)
    noise: float = Field(default=0.1, ge=0, description="length of the noise in each layer, for simgcl and xsimgcl")
    drop: float = Field(default=0.1, ge=0, lt=1, description="share of the edges dropped, for sgl")
    layer: int = Field(default=1, ge=1, description="layer compared with the mean, for xsimgcl")


class LightGcn(Mf):
    """Mean of the tables' vectors propagated over the training graph (He et al. 2020)."""

    name: Literal["lightgcn"] = "lightgcn"  # type: ignore[assignment]
    similarity: Literal["dot", "cosine"] = "dot"
    layers: int = Field(default=3, ge=0)
    l2: float = Field(default=1e-4, ge=0, description="penalty on the layer-0 vectors of the batch")
    ssl: Ssl | None = None


class Ngcf(LightGcn):
    """Propagation with weight matrices; the layers are concatenated (Wang et al. 2019)."""

    name: Literal["ngcf"] = "ngcf"  # type: ignore[assignment]
    l2: float = Field(default=1e-5, ge=0, description="penalty on the layer-0 vectors of the batch")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="message dropout")


class Popularity(Section):
    """Most popular items of the training split."""

    name: Literal["popularity"] = "popularity"


class ClosedForm(Section):
    """A model without epochs. ``grid`` maps parameters to the values that are tried; train.selection decides."""

    grid: dict[str, tuple[float | str, ...]] = {}

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


class Ials(Section):
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


Model = Annotated[
    Mf | LightGcn | Ngcf | Popularity | ItemKnn | Ials | Ease | Slim | GfCf | ChebyCf | Bspm,
    Field(discriminator="name"),
]


def is_searched(model: Model) -> bool:
    """Whether parameters of a model are chosen by a grid."""
    return isinstance(model, ClosedForm) and bool(model.grid)


class LevelShares(Section):
    """How ``multi_graphhash`` and ``residual_codes`` divide their rows between levels, own and hashed rows."""

    count: int = Field(default=3, ge=1, description="clustering levels")
    ratio: float = Field(default=3.0, ge=1, description="rows of a level over those of the coarser one")
    head_share: float = Field(default=0.2, ge=0, lt=1, description="rows of the most frequent ids, one each")
    hash_share: float = Field(default=0.0, ge=0, lt=1, description="rows that the other ids share at random")
    weights: tuple[float, ...] | None = Field(default=None, description="of the levels, coarse first; none: 1 each")


class Compressor(Section):
    """How ids share rows. All but ``full`` get exactly the row budget of the experiment."""

    name: CompressorName = "full"
    algorithm: Literal["louvain", "leiden"] = "louvain"
    levels: LevelShares | None = None


class Budget(Section):
    """Rows of the compressed tables, users and items together; exactly one field is set.

    ``rows`` is a share ("16%") or a number of rows; ``table_mib`` counts float32 weights; ``resolution`` is GraphHash's
    own parameter. The first three are met within 2 % by searching the resolution; the rows that GraphHash gives per
    side are then used by every compressor.
    """

    rows: str | int | None = None
    table_mib: float | None = Field(default=None, gt=0)
    resolution: float | None = Field(default=None, gt=0)


class Train(Section):
    """The training loop."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=2048, ge=1)
    eval_every_epochs: int = Field(default=5, ge=1)
    patience: int = Field(default=3, ge=1, description="evaluations without a gain before stopping")
    selection: str = Field(default="recall@20", description="validation metric that selects the epoch")
    selected_on: Literal["valid", "test"] = Field(
        default="valid",
        description="test: train on train+valid and pick the best epoch on test, as many papers do; the report warns",
    )
    refit: bool = Field(default=True, description="train again on train+valid for the selected number of epochs")
    gradient_clip_norm: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_minutes: float = Field(default=1.0, gt=0)
    lr_decay: float = Field(
        default=1.0, gt=0, le=1, description="share of lr in the last epoch; for bpr with batch_size 1"
    )
    max_minutes: float | None = Field(default=None, gt=0, description="stop selection after this long")

    @property
    def refits(self) -> bool:
        """Whether there is a second training; test selects among epochs that have train and validation already."""
        return self.refit and self.selected_on == "valid"

    @property
    def sees_valid(self) -> bool:
        """Whether the final model has learned from validation."""
        return self.refit or self.selected_on == "test"


class Evaluate(Section):
    """The exact evaluation of the test split."""

    k: tuple[int, ...] = (5, 10, 20, 50)
    max_k: int = Field(default=200, ge=1, description="curves go to this k")
    bootstrap: int = Field(default=1000, ge=100)
    auc: bool = True


class Variant(Section):
    """One row of the report. ``model``, ``train`` are merged over the experiment's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    model: Model
    compressor: Compressor | None = None
    train: Train = Train()


class Tracking(Section):
    """MLflow. The default is an sqlite file in the working directory."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    system_metrics: bool = True


class Experiment(Section):
    """A whole experiment: what ``recsys run`` takes, after merging ``dataset.base`` and the variants' overrides."""

    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    dataset: Dataset
    budget: Budget = Budget(rows="16%")
    evaluate: Evaluate = Evaluate()
    variants: tuple[Variant, ...] = Field(min_length=1)
    tracking: Tracking = Tracking()
    output: str = Field(default="runs", description="directory that gets the run directories")
