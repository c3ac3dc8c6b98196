"""Several row budgets in one experiment: every compressed variant once for each of them."""

from __future__ import annotations

from typing import Any

from pipelines.config import Budget, Experiment, Variant
from pipelines.config_ensemble import Ensemble
from pipelines.config_section import TableModel


def crossed(experiment: Experiment) -> Experiment:
    """The experiment with ``budgets`` multiplied out; the same where it has none.

    A compressed variant becomes ``name@16%`` and so on, each with its own ``budget``, and an ensemble of it one for
    each of them. Models without a table and full tables, whose rows no budget sets, stay as they are.
    """
    if not experiment.budgets:
        return experiment
    several = {v.name for v in experiment.variants if is_compressed(v) and v.budget is None}
    variants: list[Variant] = []
    for variant in experiment.variants:
        model = variant.model
        members = model.members if isinstance(model, Ensemble) else ()
        if several.isdisjoint({variant.name, *members}):
            variants.append(variant)
            continue
        for rows in experiment.budgets:
            budget = Budget(rows=rows)
            own: dict[str, Any] = {"budget": budget}
            if members:
                names = tuple(f"{name}@{written(budget)}" if name in several else name for name in members)
                own = {"model": model.model_copy(update={"members": names})}
            variants.append(variant.model_copy(update={"name": f"{variant.name}@{written(budget)}", **own}))
    return experiment.model_copy(update={"variants": tuple(variants), "budgets": ()})


def is_compressed(variant: Variant) -> bool:
    """Whether ids of a variant share rows."""
    compressor = variant.compressor
    return isinstance(variant.model, TableModel) and compressor is not None and compressor.name != "full"


def budget_of(experiment: Experiment, variant: Variant) -> Budget:
    """The budget that a variant's tables meet."""
    return variant.budget or experiment.budget


def group_of(experiment: Experiment, variant: Variant) -> tuple[Budget, bool]:
    """What variants of equal rows share: their budget, and whether it is one of the items' table alone."""
    return budget_of(experiment, variant), isinstance(variant.model, TableModel) and variant.model.items_only


def group_name(group: tuple[Budget, bool]) -> str:
    """A group in words."""
    return f"{written(group[0])} of the items" if group[1] else written(group[0])


def written(budget: Budget) -> str:
    """A budget in a name.

    >>> written(Budget(rows="16%")), written(Budget(resolution=30.0))
    ('16%', 'resolution=30')
    """
    if budget.rows is not None:
        return str(budget.rows).replace(" ", "")
    return f"table_mib={budget.table_mib:g}" if budget.table_mib is not None else f"resolution={budget.resolution:g}"
