"""Where frozen semantic ids lie, and with which settings they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.config_problems import Finding
from pipelines.config_semantic import SemanticIds
from pipelines.errors import DataError

FOLDER, MANIFEST = "semantic_ids", "manifest.json"
FORMAT = "recsys frozen semantic ids 1"


def find_frozen(place: str) -> Path:
    """The folder of frozen semantic ids that a run directory, the name of a run, or the folder itself means.

    Raises:
        DataError: There is none.
    """
    for folder in (Path(place) / FOLDER, Path(place), Path("runs") / place / FOLDER):
        if (folder / MANIFEST).is_file():
            return folder
    raise DataError(
        f"{place!r} is no run with semantic ids and no folder of them (there is no {FOLDER}/{MANIFEST}); a run of an"
        " experiment with a section `semantic_ids` writes it"
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts of frozen semantic ids.

    Raises:
        DataError: They are no such facts.
    """
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except ValueError as error:
        raise DataError(f"{folder / MANIFEST} is not JSON ({error}); copy the folder again from its run") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{folder} holds no frozen semantic ids: its {MANIFEST} must have the format {FORMAT!r}")
    return found


def in_force(settings: SemanticIds) -> SemanticIds:
    """``settings``, or with ``codes`` those that the frozen codes were made with.

    Raises:
        DataError: The codes are not there, or were made by a version with other settings.
    """
    if settings.codes is None:
        return settings
    folder = find_frozen(settings.codes)
    try:
        return SemanticIds.model_validate(read_manifest(folder)["settings"])
    except (ValidationError, KeyError) as error:
        raise DataError(
            f"the settings in {folder / MANIFEST} are not those of this version ({error}); tokenise the items anew"
        ) from error


def check_frozen(settings: SemanticIds | None) -> Iterator[Finding]:
    """Yield a finding if frozen codes are wanted that cannot be read."""
    try:
        if settings is not None:
            in_force(settings)
    except DataError as error:
        yield ("semantic_ids", "codes"), str(error)
