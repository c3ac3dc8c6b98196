"""The two-tower model of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config_features import Encoding
from pipelines.config_section import Optimizer, Section, TableModel
from pipelines.config_sparse import Sparse, SparseEntries


class TowerInputs(Section):
    """What a tower is told of its users or items."""

    id: bool = Field(default=True, description="a table of the ids, compressed as the variant says")
    features: dict[str, Encoding] | None = Field(
        default=None, description="column: how it is encoded; null: every feature of the dataset, by its kind"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the features masked in a training step")


class TowerHistory(Section):
    """The user's last items, pooled from the items' id table."""

    length: int = Field(default=50, ge=1)
    context: Literal["auto", "before", "others"] = Field(
        default="auto", description="items before the target, or all others; auto: before, where events have an order"
    )


class TowerLoss(Section):
    """Softmax over candidates, cosines divided by a temperature."""

    name: Literal["in_batch", "sampled", "mixed"] = "mixed"
    count: int = Field(default=512, ge=1, description="items drawn uniformly in a step, for sampled and mixed")
    temperature: float = Field(default=0.1, gt=0)
    learn_temperature: bool = False
    logq: Literal["streaming", "exact", "none"] = "streaming"
    hardness: float = Field(default=0.0, ge=0, description="how much more hard negatives count; not for sampled")


class TowerSsl(Section):
    """Self-supervision of the item tower (Yao et al. 2021)."""

    name: Literal["rfm", "cfm", "dropout", "spread_out"]
    weight: float = Field(default=0.1, ge=0)
    temperature: float = Field(default=0.1, gt=0)
    batch_size: int = Field(default=512, ge=2, description="items drawn uniformly in a step")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of list values (dropout: of features) dropped")
    projection: Literal["shared", "separate"] = "shared"


class TwoTower(TableModel):
    """Two towers over features, ids and the user's history (Yi et al. 2019)."""

    name: Literal["two_tower"] = "two_tower"
    feature_dim: int = Field(default=16, ge=1, description="of the tables of features; ids have dim")
    hidden: tuple[int, ...] = Field(default=(), description="widths between the features and the vector of dim")
    user: TowerInputs = TowerInputs()
    item: TowerInputs = TowerInputs()
    history: TowerHistory | None = TowerHistory()
    loss: TowerLoss = TowerLoss()
    ssl: TowerSsl | None = None
    sparse: Sparse | None = Field(default=None, description="store only a share of the id tables' entries")
    sparse_layers: SparseEntries | None = Field(
        default=None, description="store only a share of the weights of both networks"
    )
    optimizer: Optimizer = Optimizer(name="adagrad", lr=0.05)
    dense_lr: float = Field(default=1e-3, gt=0, description="of Adam, for everything that is no table")

    @property
    def items_only(self) -> bool:
        """See :class:`TableModel`."""
        return not self.user.id
