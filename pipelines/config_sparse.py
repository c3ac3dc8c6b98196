"""The sparse part of a model's configuration: how few entries of its tables and layers are stored, and which."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class SparseEntries(BaseModel, frozen=True, extra="forbid"):
    """Matrices that store a share of their entries: found in training, random, or the largest after a full training."""

    density: float = Field(gt=0, le=1, description="share of the entries that are stored, of all matrices together")
    method: Literal["dynamic", "static", "prune"] = Field(
        default="dynamic", description="static: a random mask that stays; prune: by magnitude, after training"
    )
    distribution: Literal["uniform", "erk"] = Field(default="uniform", description="erk: small matrices stay denser")
    growth: Literal["gradient", "random", "momentum"] = Field(default="gradient", description="RigL and DSL, SET, SNFS")
    every_steps: int = Field(default=100, ge=1, description="Delta T, steps between two updates")
    start: float = Field(default=0.5, ge=0, le=1, description="share of the entries that the first updates move")
    end: float = Field(default=0.005, ge=0, le=1, description="share that the last update moves; cosine between")
    stop: float = Field(default=1.0, gt=0, le=1, description="share of train.epochs after which nothing moves")
    window_steps: int = Field(default=1, ge=1, description="steps before an update whose gradients count for growth")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="decay of these by step, for growth by momentum")

    @model_validator(mode="after")
    def _share_falls(self) -> Self:
        if self.end > self.start:
            raise ValueError(f"the share that moves must fall, got start {self.start} and end {self.end}")
        return self


class Sparse(SparseEntries):
    """Sparse tables, whose rows start with columns that suit the graph."""

    columns: Literal["clusters", "random"] = Field(
        default="clusters", description="that rows start with: of their cluster of the graph, or drawn by each row"
    )
    resolution: float = Field(default=8.0, gt=0, description="of these clusters; higher: more and smaller ones")


class MixedDims(BaseModel, frozen=True, extra="forbid"):
    """DNIS, AutoSrh: learn a soft selection of columns by frequency block, prune the tables, and train them again."""

    density: float = Field(gt=0, le=1, description="share of the entries of each table that is kept")
    blocks: tuple[float, ...] = Field(
        default=(0.1,) * 10, min_length=1, description="shares of the rows, frequent first"
    )
    epochs: int = Field(default=30, ge=1, description="of the search, the warm-up included")
    warmup_epochs: int = Field(default=10, ge=0, description="that train the rows alone")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of train that the selection learns from")
    alpha_lr: float = Field(default=1e-2, gt=0)
    alpha_l1: float = Field(default=1e-5, ge=0)

    @model_validator(mode="after")
    def _search_can_run(self) -> Self:
        if min(self.blocks) <= 0 or not math.isclose(sum(self.blocks), 1.0, abs_tol=1e-6):
            raise ValueError(f"blocks must be positive shares that add up to 1, got {list(self.blocks)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"epochs must exceed warmup_epochs, got {self.epochs} and {self.warmup_epochs}")
        return self
