"""A model made of two variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.config_models import ClosedForm, Mf, NeuMf, Popularity

if TYPE_CHECKING:
    from pipelines.config import Variant


class Ensemble(ClosedForm):
    """Weighted sum of the scores of two variants (EnsRec); ``grid: {weight: [..]}`` chooses it on validation."""

    name: Literal["ensemble"] = "ensemble"
    members: tuple[str, str] = Field(description="names of two variants above this one")
    weight: float = Field(default=0.5, ge=0, le=1, description="of the second member, the rest is the first's")
    standardise: bool = Field(
        default=False, description="divide a user's scores by their deviation; for members of unlike scales"
    )


def check_ensemble(
    model: Ensemble, variant: Variant, before: Sequence[Variant]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield a finding for members that are not trained before, cannot be summed, or have learned from validation."""
    known = {other.name: other for other in before}
    if set(model.grid) - {"weight"}:
        yield ("model", "grid"), "the grid of an ensemble is of its weight alone"
    for name in model.members:
        member = known.get(name)
        if member is None:
            there = ", ".join(known) or "none"
            yield ("model", "members"), f"{name!r} is no variant above this one (there are: {there})"
        elif isinstance(member.model, Ensemble) or not isinstance(member.model, (Mf, ClosedForm, Popularity)):
            yield ("model", "members"), f"{name!r} is {member.model.name}, which cannot be summed"
        elif not model.standardise and (not isinstance(member.model, Mf) or isinstance(member.model, NeuMf)):
            message = f"{name!r} is {member.model.name}, must be a model of embeddings, as sasrec or mf"
            yield ("model", "members"), f"{message}; standardise: true sums scores of any scale"
        elif (member.train.sees_valid, member.train.selected_on) != (
            variant.train.sees_valid,
            variant.train.selected_on,
        ):
            yield ("train", "refit"), f"refit and selected_on must be those of the member {name!r}"
        elif model.grid and member.train.refits:
            message = f"the member {name!r} is refitted on validation, which the grid chooses by"
            yield ("model", "grid"), f"{message}; set train.refit: false for both, or give the weight"
