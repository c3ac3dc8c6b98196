"""The compression stages of an experiment, one for each budget of its variants."""

from __future__ import annotations

from scipy.sparse import csr_array

from embeddings.semantic_id.codes import SemanticCodes
from pipelines.cache import Cache
from pipelines.config import Budget, Experiment, Variant
from pipelines.config_budgets import group_name, group_of
from pipelines.config_section import TableModel
from pipelines.run_schema import Compression, Json
from pipelines.stages.compress import CompressionStage, Maps, compressor_of


class CompressionStages:
    """Id maps of every variant; variants of equal budget have equal rows, if users have a table in all of them or none.

    Args:
        cache: Stage cache.
        experiment: Gives the variants and their budgets.
        graph: Training pairs [users, items].
        train_hash: Hash of ``graph``.
        codes: Semantic ids of the items, for the compressors that take them.
    """

    def __init__(
        self,
        cache: Cache,
        experiment: Experiment,
        graph: csr_array,
        train_hash: str,
        codes: SemanticCodes | None = None,
    ) -> None:
        self.experiment = experiment
        groups: dict[tuple[Budget, bool], list[Variant]] = {}
        for variant in experiment.variants:
            if isinstance(variant.model, TableModel):
                groups.setdefault(group_of(experiment, variant), []).append(variant)
        self._stages = {
            (budget, items_only): CompressionStage(
                cache,
                experiment.model_copy(update={"budget": budget, "variants": tuple(group)}),
                graph,
                train_hash,
                codes,
                items_only=items_only,
            )
            for (budget, items_only), group in groups.items()
        }

    def maps(self, variant: Variant) -> Maps:
        """The id maps of a variant with tables."""
        return self._stages[group_of(self.experiment, variant)].maps(compressor_of(variant.compressor))

    def graphs(self) -> dict[str, str]:
        """As :meth:`CompressionStage.graphs`, the names with the budget where there are several."""
        several = len(self._stages) > 1
        return {
            f"{name} at {group_name(group)}" if several else name: found
            for group, stage in self._stages.items()
            for name, found in stage.graphs().items()
        }

    def facts(self, user_titles: list[str], item_titles: list[str]) -> Compression | None:
        """What ``compression.json`` says; None if no variant compresses."""
        every = {group: stage.facts(user_titles, item_titles) for group, stage in self._stages.items()}
        found = {group_name(group): facts for group, facts in every.items() if facts is not None}
        if len(found) < 2:
            return next(iter(found.values()), None)
        return Compression(
            budgets={
                f"{name}, {algorithm}" if algorithm else name: {**facts.budget, **clustering}
                for name, facts in found.items()
                for algorithm, clustering in (facts.budgets or {"": _main(facts)}).items()
            },
            maps={
                _at(map_name, name): sides for name, facts in found.items() for map_name, sides in facts.maps.items()
            },
            worst_buckets=tuple(
                row.model_copy(update={"compressor": _at(row.compressor, name)})
                for name, facts in found.items()
                for row in facts.worst_buckets
            ),
        )


def _main(facts: Compression) -> Json:
    return {"clustering": facts.clustering, "stability": facts.stability}


def _at(compressor: str, budget: str) -> str:
    return compressor if compressor == "full" else f"{compressor}@{budget}"
