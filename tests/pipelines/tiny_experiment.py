"""A small experiment on generated data: planted groups, so that models have something to learn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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


def recsys(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``directory``."""
    return subprocess.run(
        command(*arguments), cwd=directory, env=env(environment), capture_output=True, text=True, check=False
    )


def command(*arguments: str) -> Sequence[str]:
    """The command line as a list."""
    return [sys.executable, "-m", "pipelines.cli", *arguments]


def env(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of the tests, with the sources importable from anywhere."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "COLUMNS": "140", **(extra or {})}
