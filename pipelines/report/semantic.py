"""The panel on semantic ids: usage and entropy of each level, collisions, hierarchy."""

from __future__ import annotations

from typing import Any

from pipelines.report import words

LEVEL_COLUMNS = ("level", "codes", "used", "usage", "entropy, bits", "of the most possible", "items of the largest")
COLLISIONS = {"keep": "kept", "digit": "resolved by a digit", "reassign": "resolved by reassignment"}
PATH_COLUMNS = ("variant", "level", "users with a right prefix", "right after it", "after a wrong one", "in any list")
HIERARCHY_COLUMNS = ("codes in common", "pairs", "mean cosine")


def facts(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Version, size, collisions (before they are resolved) and error, each with what it means."""
    error = quality["error"]
    return [
        ("Version", quality["version"]),
        ("Items", f"{quality['items']:,}"),
        *_frozen(quality.get("frozen")),
        ("Different codes", f"{quality['distinct']:,}"),
        ("Collisions", COLLISIONS[quality["collisions"]]),
        ("Items that share a code", f"{quality['colliding']:,} ({words.percent(quality['colliding_share'])})"),
        ("Most items of one code", f"{quality['largest_collision']:,}"),
        ("Items below the largest first code", words.percent(quality["prefix_share"])),
        ("Reconstruction error", "–" if error is None else f"{error:.3f} of the variance"),
    ]


def _frozen(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    return [
        ("Frozen codes", f"version {found['version']}, kept by {found['kept']:,} items"),
        ("Items added to them", f"{found['added']:,}"),
        ("Codes reserved for items that are gone", f"{found['reserved']:,}"),
    ]


def level_rows(quality: dict[str, Any]) -> list[list[str]]:
    """One row for each level, in the order of ``LEVEL_COLUMNS``."""
    return [
        [
            str(number),
            f"{level['width']:,}",
            f"{level['used']:,}",
            words.percent(level["usage"]),
            f"{level['entropy']:.2f}",
            words.percent(level["entropy_share"]),
            f"{level['largest']:,}",
        ]
        for number, level in enumerate(quality["levels"], start=1)
    ]


def hierarchy_rows(quality: dict[str, Any]) -> list[list[str]]:
    """One row for each length of a shared prefix, in the order of ``HIERARCHY_COLUMNS``."""
    return [[str(e["shared"]), f"{e['pairs']:,}", f"{e['cosine']:.3f}"] for e in quality["hierarchy"]]


def path_rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row for each variant and level, in the order of ``PATH_COLUMNS``; ``found`` is by variant."""
    return [
        [
            name,
            str(number),
            f"{level['right_users']:,}",
            _share(level["after_right"]),
            _share(level["after_wrong"]),
            words.percent(paths["recommended"]) if number == 1 else "",
        ]
        for name, paths in found.items()
        for number, level in enumerate(paths["levels"], start=1)
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else words.percent(value)
