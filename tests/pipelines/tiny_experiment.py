"""A small experiment on generated data: planted groups, so that models have something to learn."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main

USERS, ITEMS, GROUPS = 60, 40, 4

CONFIG = """\
experiment: tiny
dataset:
  name: tiny
  source: {source}
  items: {{source: items.csv, id: item, title: title}}
budget: {{rows: 40%}}
evaluate: {{k: [5, 20], max_k: 30, bootstrap: 100}}
model: {{name: mf, dim: 8, negatives: {{count: 16}}, optimizer: {{name: adam, lr: 0.05}}}}
train: {{epochs: 8, batch_size: 64, eval_every_epochs: 2, patience: 4, checkpoint_minutes: 0.001}}
tracking: {{enabled: false}}
variants:
  - {{name: popularity, model: {{name: popularity}}}}
  - {{name: item-knn, model: {{name: item_knn}}}}
  - {{name: mf-full, compressor: {{name: full}}}}
  - {{name: mf-graphhash, compressor: {{name: graphhash}}}}
  - {{name: mf-modulo, compressor: {{name: modulo}}}}
"""


def write_tiny(directory: Path) -> Path:
    """Write events, items and the configuration; return the configuration's path."""
    data = directory / "data"
    data.mkdir(parents=True)
    generator = np.random.Generator(np.random.Philox(7))
    lines = ["user,item"]
    for user in range(USERS):
        liked = generator.permutation(ITEMS // GROUPS)[:8] * GROUPS + user % GROUPS
        other = generator.integers(0, ITEMS, 2)
        lines += [f"u{user},i{item}" for item in np.unique(np.concatenate([liked, other]))]
    (data / "interactions.csv").write_text("\n".join(lines) + "\n")
    items = ["item,title", *(f"i{item},Title <{item}>" for item in range(ITEMS))]
    (data / "items.csv").write_text("\n".join(items) + "\n")
    config = directory / "tiny.yaml"
    config.write_text(CONFIG.format(source=data))
    return config


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command printed and how it ended."""

    returncode: int
    stdout: str
    stderr: str


def recsys(directory: Path, *arguments: str) -> Done:
    """Run the command line in ``directory``, within this process: the imports of a new one take seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(directory)
        patch.setattr(sys, "argv", ["recsys", *arguments])
        patch.setenv("COLUMNS", "140")
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code
    return Done(int(str(code or 0)), out.getvalue(), err.getvalue())


def env(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of the tests, with the sources importable from anywhere."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "COLUMNS": "140", **(extra or {})}
