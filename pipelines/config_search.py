"""The ``search`` section of an experiment: which settings ``recsys sweep`` tries, and how it chooses them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.config_section import Section


class Range(Section):
    """The values of one setting: numbers from ``low`` to ``high``, both included, or one of ``choices``."""

    type: Literal["float", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = Field(default=False, description="uniform in the logarithm")
    step: float | None = Field(default=None, gt=0, description="between values; null: any")
    choices: tuple[Any, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        numbers = {"low": self.low, "high": self.high, "step": self.step}
        if self.type == "categorical":
            extra = [name for name, value in numbers.items() if value is not None] + ["log"] * self.log
            if self.choices is None or extra:
                raise ValueError(f"categorical needs choices and nothing else, got {', '.join(extra) or 'no choices'}")
            return self
        if self.low is None or self.high is None or self.choices is not None:
            raise ValueError(f"{self.type} needs low and high and no choices")
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"log needs low above 0 and no step, got low {self.low:g}, step {self.step}")
        fractions = {name: value for name, value in numbers.items() if value is not None and value != int(value)}
        if self.type == "int" and fractions:
            raise ValueError(f"int needs whole numbers, got {', '.join(f'{k} {v:g}' for k, v in fractions.items())}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values between which all others lie: low and high, or every choice."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return (int(self.low), int(self.high)) if self.type == "int" else (self.low, self.high)


class Search(Section):
    """What a sweep tries. Each variant is searched by itself, with as many trials as every other.

    A key of ``parameters`` is ``model.*``, ``train.*`` or ``compressor.*`` for every variant that has the setting, or
    ``variants.NAME.model.*`` and so on for one.
    """

    parameters: dict[str, Range] = Field(min_length=1)
    sampler: Literal["tpe", "random"] = "tpe"
    seed: int = 0
    startup_trials: int = Field(default=10, ge=1, description="drawn at random before the sampler has a model")
    prune: bool = Field(default=True, description="stop a trial that is below the median of the others at its epoch")
    prune_after_trials: int = Field(default=5, ge=1, description="finished trials of a variant before any is pruned")
    prune_after_epochs: int = Field(default=0, ge=0, description="epochs that every trial gets")
