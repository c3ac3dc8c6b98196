"""What every section of a configuration is made of, and what all models with tables share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Width = Annotated[int, Field(ge=1)]
"""Of a layer, or of a level of codes."""


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimizer(Section):
    """Optimizer of the embedding tables."""

    name: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "lazy_adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class EpochModel(Section):
    """A model that is trained in epochs; ``train.selection`` decides on their number."""


class TableModel(EpochModel):
    """A model with a table of the users and one of the items, which a compressor can make small."""

    dim: int = Field(default=64, ge=1)
    optimizer: Optimizer = Optimizer()
    backend: Literal["torch", "fbgemm"] = "torch"
    table_dtype: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32", description="of the tables' rows; those below float32 take less and round updates at random"
    )
    init_std: float = Field(default=0.1, gt=0)

    @property
    def items_only(self) -> bool:
        """Whether users have no table; then a budget is one of the items'."""
        return False

    @property
    def table_dim(self) -> int:
        """Columns of the tables of users and items."""
        return self.dim

    @property
    def row_bytes(self) -> int:
        """Of the weights of one row."""
        match self.table_dtype:
            case "float32":
                return self.table_dim * 4
            case "bfloat16":
                return self.table_dim * 2
            case "int8":
                return self.table_dim + 1
