"""Errors that a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used: the message names file, row, column and value, and says what to do."""


class LeakError(DataError):
    """Information of validation or test reached something that was made for training."""


def did_you_mean(wrong: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Sentence that offers the known names nearest to ``wrong``, or lists a few of them.

    Example:
        >>> did_you_mean("user", ["user_id", "item_id"])
        'did you mean user_id, item_id?'
    """
    names = [str(name) for name in known]
    near = difflib.get_close_matches(wrong, names, n=limit, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"there are: {shown or 'none'}"
