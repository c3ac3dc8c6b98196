"""Mistakes in a configuration: collected, located in the file, and said in one message with a suggestion."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]
Finding = tuple[Path, str]
"""The key of a mistake and its message."""
IGNORED = "would be ignored; remove it"
"""The end of the message of a setting that a variant does not read, but others of its file may."""


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """One mistake: ``where`` (``file:line`` or ``command line``), the dotted ``key``, and what is allowed."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class ConfigError(ValueError):
    """A configuration that cannot be used. ``problems`` has every mistake found, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = len(self.problems)
        head = "1 mistake in the configuration:" if count == 1 else f"{count} mistakes in the configuration:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """``; did you mean `epochs`?`` for a close match, else the empty string."""
    match = difflib.get_close_matches(str(word), [str(name) for name in allowed], n=1, cutoff=0.6)
    return f"; did you mean `{match[0]}`?" if match else ""


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union without None; any other annotation as the only member."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def tag(section: type[BaseModel]) -> str:
    """The value of ``name``, or else of ``format``, that selects ``section`` in a discriminated union."""
    fields = section.model_fields
    return str(fields["format" if "format" in fields else "name"].default)


def section_at(root: type[BaseModel], location: Path) -> tuple[Path, type[BaseModel], Any]:
    """Follow a pydantic error location through the sections.

    Returns:
        The path without the tags that pydantic adds for unions, the section that owns the last key, and the
        annotation of the last key (None if that section has no such key).
    """
    path: list[str | int] = []
    owner: type[BaseModel] = root
    annotation: Any = root
    for key in location:
        members = alternatives(annotation)
        if len(members) > 1:
            tagged = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel) and tag(m) == key]
            annotation = tagged[0] if tagged else None
            continue
        member = members[0]
        if isinstance(member, type) and issubclass(member, BaseModel):
            owner = member
            field = member.model_fields.get(str(key))
            annotation = field.annotation if field else None
            path.append(key)
        elif get_origin(member) in (tuple, list, dict):
            annotation = get_args(member)[1 if get_origin(member) is dict else 0]
            path.append(key)
    return tuple(path), owner, annotation


def explain(error: ErrorDetails, owner: type[BaseModel], annotation: Any, extra_keys: Sequence[str]) -> str:
    """The message of one pydantic error: what came, what is allowed, what was probably meant.

    Args:
        error: The error.
        owner: Section in which the key stands.
        annotation: Annotation of the key, None for an unknown key.
        extra_keys: Keys that the loader adds to those of ``owner`` (``model`` and ``train`` of an experiment, ``base``
            of its dataset).
    """
    value = error["input"]
    key = str(error["loc"][-1])
    match error["type"]:
        case "extra_forbidden":
            allowed = [*owner.model_fields, *extra_keys]
            return f"unknown key{did_you_mean(key, allowed)} (allowed here: {', '.join(allowed)})"
        case "missing":
            return "is required"
        case "literal_error":
            names = [str(v) for m in alternatives(annotation) if get_origin(m) is Literal for v in get_args(m)]
            return f"got {value!r}, must be one of {', '.join(names)}{did_you_mean(value, names)}"
        case "union_tag_invalid" | "union_tag_not_found":
            names = [tag(member) for member in alternatives(annotation)]
            field = str(error["ctx"]["discriminator"]).strip("'")
            got = value.get(field) if isinstance(value, dict) else value
            said = f"`{field}` is required" if got is None else f"{field} is {got!r}"
            return f"{said}, must be one of {', '.join(names)}{did_you_mean(got, names)}"
        case "model_type" | "model_attributes_type":
            keys = ", ".join(key for member in alternatives(annotation) for key in member.model_fields)
            return f"got {_short(value)}, must be a mapping with the keys {keys}"
        case _:
            text = error["msg"].removeprefix("Value error, ")
            return f"got {_short(value)}: {text[:1].lower()}{text[1:]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
