"""Prepared events, of whatever task."""

from __future__ import annotations

import abc
import json
from pathlib import Path
from typing import Any

from scipy.sparse import csr_array


class PreparedEvents(abc.ABC):
    """A directory of prepared events in the cache.

    Args:
        path: of the directory.

    Attributes:
        facts: for the report.
        fields: categorical ones; ``sizes`` are their numbers of values.
        user: the field of the users, ``item`` that of the items.
        hash: of the content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = json.loads((path / "facts.json").read_bytes())
        self.sizes: dict[str, int] = self.facts["fields"]
        self.fields: tuple[str, ...] = tuple(self.sizes)
        self.user, self.item = str(self.facts["user"]), str(self.facts["item"])
        self.hash = str(self.facts["hash"])

    @abc.abstractmethod
    def graph(self) -> csr_array:
        """Float32 [users, items]: ones at the pairs of positive train events."""
