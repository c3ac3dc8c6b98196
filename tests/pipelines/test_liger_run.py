"""TIGER with a dense head, from the configuration to the report and the explanation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_experiment import recsys

from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from recsys.checkpoint import load_model
from recsys.models.tiger import Tiger

KINDS, OLD, USERS, EVENTS = ("soap", "brush", "cream"), 8, 48, 6
"""Eight items of each kind and a new one that is in the test split only."""

CONFIG = """\
experiment: news
dataset:
  name: news
  source: {source}
  items: {{source: items.csv, id: item, title: title, features: {{kind: categorical}}}}
  split: {{method: leave_last_n}}
semantic_ids:
  features: [{{name: text, columns: [kind], dim: 8}}, {{name: spectral, dim: 4}}]
  tokeniser: {{name: rq_kmeans, widths: [4, 4]}}
  collisions: digit
  gates: {{min_usage: 0, max_colliding: 1, max_prefix_share: 1, hierarchy: false}}
evaluate: {{k: [1, 5], max_k: 8, bootstrap: 100, auc: false}}
model:
  {{name: tiger, dim: 16, layers: 1, heads: 2, head_dim: 8, inner: 32, max_items: 3, beam: 8, dropout: 0.0,
   optimizer: {{lr: 0.02, warmup_steps: 10}}}}
train: {{epochs: 20, batch_size: 96, eval_every_epochs: 10, selection: recall@5, checkpoint_minutes: 0.001}}
tracking: {{enabled: false}}
variants:
  - {{name: popularity, model: {{name: popularity}}}}
  - {{name: tiger}}
  - {{name: liger, model: {{dense: {{candidates: 5}}}}}}
  - {{name: dense, model: {{dense: {{candidates: null}}}}}}
"""


def write_news(directory: Path) -> Path:
    """Users go round the items of one kind; the last event of every other user is the new item of that kind."""
    directory.mkdir()
    lines = []
    for user in range(USERS):
        items = [f"{(user // 3 + step) % OLD}" for step in range(EVENTS)]
        items[-1] = "new" if user % 2 else items[-1]
        lines += [f"u{user},{KINDS[user % 3]}-{item},{3600 * step}" for step, item in enumerate(items)]
    (directory / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(lines) + "\n")
    names = [*map(str, range(OLD)), "new"]
    items = [f"{kind}-{name},Fine {kind} {name},{kind}" for kind in KINDS for name in names]
    (directory / "items.csv").write_text("item,title,kind\n" + "\n".join(items) + "\n")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("liger")
    (directory / "news.yaml").write_text(CONFIG.format(source=write_news(directory / "data")))
    done = recsys(directory, "run", "news.yaml")
    assert done.returncode == 0, done.stderr
    return directory / done.stdout.splitlines()[-1]


def cold(run: Path, variant: str) -> dict[str, float]:
    """Metrics of the slice of the items without a train user."""
    found = json.loads((run / "variants" / f"{variant}-s0" / "evaluation.json").read_bytes())
    row = found["slices"]["cold_items"][0]
    assert (row["label"], row["items"], row["pairs"]) == ("no train users", 3, USERS // 2)
    metrics: dict[str, float] = row["metrics"]
    return metrics


def test_cold_items_are_recommended_and_their_slice_tells(run: Path) -> None:
    assert cold(run, "liger")["recall@5"] > 0.9 and cold(run, "dense")["recall@5"] > 0.9
    assert cold(run, "liger")["recall@5"] > cold(run, "tiger")["recall@5"]
    assert "no train users" in (run / "report.html").read_text()


def test_the_head_reads_content_without_the_graph_and_knows_what_was_not_trained(run: Path) -> None:
    model = load_model(run / "variants" / "liger-s0" / "checkpoint")
    assert isinstance(model, Tiger) and model.dense is not None
    content = model.dense.content.numpy()
    near = content @ content.T
    kind = np.arange(len(content)) // (OLD + 1)
    assert np.allclose(near[kind[:, None] == kind], content.shape[1], rtol=1e-4)
    assert near[kind[:, None] != kind].max() < content.shape[1] / 2
    assert model.dense.cold.nonzero()[:, 0].tolist() == [OLD, 2 * OLD + 1, 3 * OLD + 2]


def test_an_explanation_says_which_items_the_dense_head_brought_in(run: Path) -> None:
    asked = ("recommend", str(run), "--user", "u0", "--explain", "--k", "5", "--variant")
    shown = recsys(run.parent.parent, *asked, "liger")
    assert shown.returncode == 0, shown.stderr
    assert "cold item, by the dense head; of the history nearest in content: Fine soap" in shown.stdout
    stored = json.loads(recsys(run.parent.parent, *asked, "liger", "--json").stdout)["items"]
    assert "soap-new" in [item["id"] for item in stored]  # of u0's kind, and u0 has not had it
    new = [item for item in stored if item["id"].endswith("-new")]
    old = [item for item in stored if item not in new]
    assert new and old
    for item in new:
        (match,) = item["because"]
        assert match["cold"] and len(match["nearest"]) == 3 and match["weight"] == item["score"]
    assert all(item["because"][0]["codes"] for item in old)
    whole = json.loads(recsys(run.parent.parent, *asked, "dense", "--json").stdout)["items"]
    assert [item["because"][0]["cold"] for item in whole] == [item["id"].endswith("-new") for item in whole]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("semantic_ids.features=[{name: spectral}]", "semantic_ids.features has only spectral: add text, matrix or"),
        ("evaluate.k=[1, 8]", "got 5, fewer than the 8 items of the longest list in evaluate.k; set it to 8 or more"),
        ("variants.liger.model.dense.temperature=0", "greater than 0"),
        ("variants.liger.model.dense.candidates=0", "greater than or equal to 1"),
        ("semantic_ids=null", "tiger writes semantic ids: add a section `semantic_ids`"),
    ],
)
def test_a_dense_head_without_content_or_with_too_few_candidates_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    directory = run.parent.parent
    monkeypatch.chdir(directory)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment(str(directory / "news.yaml"), [override])
