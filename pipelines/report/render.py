"""Templates to one self-contained page: everything inline, everything escaped, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from pipelines.report.explorer import clip

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TEMPLATES = resources.files("pipelines.report") / "templates"


def embed(value: Any) -> Markup:
    """JSON that can stand inside ``<script type="application/json">``: no character can end the element.

    Raises:
        ValueError: ``value`` has NaN or infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return Markup(text)


def render(template: str, **context: Any) -> str:
    """Fill ``template`` with the style sheet, the script and a content security policy that allows just these two."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"embed": embed, "clip": clip}
    style, script = source("style.css"), source("report.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy += "; base-uri 'none'; form-action 'none'"
    page = environment.get_template(template)
    return page.render(**context, style=Markup(style), script=Markup(script), policy=policy)


def source(name: str) -> str:
    """Text of a file beside the templates."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
