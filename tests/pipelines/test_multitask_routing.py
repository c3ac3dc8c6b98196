"""Which gates send all events to the same experts."""

from __future__ import annotations

from typing import Any

from pipelines.config_multitask import MultiTaskExperiment
from pipelines.multitask.routing import fixed_choices, same_experts

FIXED = ([0.6, 1e-6, 0.4, 1e-6], [1.0, 0.002, 0.995, 0.001])
ONE = ([0.999, 0.001, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0])
ROUTED = ([0.5, 0.2, 0.2, 0.1], [1.0, 0.4, 0.4, 0.2])
DENSE = ([0.25] * 4, [1.0] * 4)
CUSTOM = ([0.5, 0.2, 0.3, 0.0], [1.0, 1.0, 1.0, 0.0])
Shares = tuple[list[float], list[float]]


def usage(**tasks: Shares) -> dict[str, Any]:
    """What evaluation.json has, of (weight, events) for each task."""
    return {
        kind: {task: found[place] for task, found in tasks.items()} for place, kind in enumerate(("weight", "events"))
    }


def counted(found: Shares, available: int = 4) -> int | None:
    return same_experts(usage(watch=found), "watch", available)


def experiment(*names: str, private: int = 0) -> MultiTaskExperiment:
    return MultiTaskExperiment.model_validate(
        {
            "experiment": "e",
            "dataset": {"name": "d", "source": "nowhere"},
            "tasks": [{"name": "watch", "label": "seen"}, {"name": "rating", "label": "value", "column": "rating"}],
            "variants": [{"name": name, "model": {"experts": 4 - private, "private": private}} for name in names],
        }
    )


def test_a_choice_is_fixed_where_the_same_experts_meet_all_events_and_have_all_weight() -> None:
    assert counted(FIXED) == 2
    assert counted(ONE) == 1, "what half of the events also meet has no weight"
    assert counted(ROUTED) is None, "one expert meets all events, the second is chosen"
    assert counted(([0.5, 0.4, 0.1, 0.0], [1.0, 1.0, 0.2, 0.0])) is None
    assert counted(([0.6, 0.4, 0.0, 0.0], [1.0, 0.989, 0.0, 0.0])) is None
    assert counted(([0.06, 0.0, 0.04, 0.0], [1.0, 0.0, 1.0, 0.0])) == 2, "weights of EvoMoE's gate do not sum to 1"
    assert counted(([0.0] * 4, [0.0] * 4)) is None


def test_a_gate_that_uses_all_that_it_has_fixes_nothing() -> None:
    assert counted(DENSE) is None
    assert counted(CUSTOM, available=3) is None, "the fourth expert is private to another task"
    assert counted(CUSTOM) == 3


def test_variants_that_do_the_same_share_a_sentence() -> None:
    config = experiment("comet", "top-k", "dselect-k", "mmoe")
    both, one = usage(watch=FIXED, rating=FIXED), usage(watch=FIXED, rating=ROUTED)
    found = fixed_choices(
        {"comet": [both], "top-k": [usage(watch=ROUTED, rating=DENSE)], "dselect-k": [both], "mmoe": [one]}, config
    )
    assert found == [
        "comet and dselect-k send nearly all events of watch and rating to the same 2 of 4 experts:"
        " their gates have fixed a choice and do not route by example.",
        "mmoe sends nearly all events of watch to the same 2 of 4 experts:"
        " its gate has fixed a choice and does not route by example.",
    ]


def test_seeds_are_counted() -> None:
    config = experiment("dselect-k")
    seeds = [usage(watch=FIXED, rating=FIXED), usage(watch=ONE, rating=FIXED)]
    (every,) = fixed_choices({"dselect-k": seeds}, config)
    assert "events of watch and rating to the same 1 or 2 of 4 experts with each of 2 seeds:" in every
    (some,) = fixed_choices({"dselect-k": [*seeds, usage(watch=FIXED, rating=ROUTED)]}, config)
    assert (
        "events of watch to the same 1 or 2 of 4 experts with each of 3 seeds"
        " and of rating to the same 2 of 4 experts with 2 of 3 seeds:" in some
    )


def test_private_experts_of_other_tasks_are_no_choice() -> None:
    custom = usage(watch=CUSTOM, rating=CUSTOM)
    assert fixed_choices({"ple": [custom]}, experiment("ple")) != []
    two_tasks = experiment("ple", private=1).model_copy(deep=True)
    assert two_tasks.variants[0].model.experts == 3
    assert (
        fixed_choices({"ple": [usage(watch=([0.5, 0.2, 0.2, 0.1, 0], [1, 1, 1, 1, 0]), rating=DENSE)]}, two_tasks) == []
    )
