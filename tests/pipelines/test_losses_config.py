"""The losses and iALS as a configuration writes them: what the trainer is told, and a run with some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from tiny_experiment import write_tiny

from pipelines.config_checks import WITHOUT_NEGATIVES
from pipelines.config_loader import load_experiment
from pipelines.config_models import Mf
from pipelines.config_problems import ConfigError
from pipelines.runner import run_experiment
from pipelines.stages.train import fit_settings
from recsys.checkpoint import load_model
from recsys.losses import Adaptation, Constraints, Loss, LossName
from recsys.sequence_losses import SequenceLoss, SequenceLossName

LOSSES = {
    "{name: bsl, temperature: 0.08, exponent: 1.22, user_dropout: 0.1}": Loss(
        "bsl", 0.08, positive_temperature=0.08, exponent=1.22, user_dropout=0.1
    ),
    "{name: bsl, temperature: 0.2, positive_temperature: 0.3, pooled: false}": Loss(
        "bsl", 0.2, positive_temperature=0.3, pooled=False
    ),
    "{name: adap_tau, warmup_epochs: 3, beta: 0.6, quantile: 0.9}": Loss(
        "adap_tau", adaptation=Adaptation(3, 0.6, 0.9)
    ),
    "{name: ccl, margin: 0.4, negative_weight: 20}": Loss("ccl", margin=0.4, negative_weight=20),
    "{name: sampled_softmax, temperature: 0.2}": Loss("sampled_softmax", 0.2),
}


@pytest.mark.parametrize("text", LOSSES)
def test_the_trainer_gets_the_parameters(tmp_path: Path, text: str) -> None:
    experiment = load_experiment(str(write_tiny(tmp_path)), [f"variants.mf-full.model.loss={text}"])
    [variant] = [variant for variant in experiment.variants if variant.name == "mf-full"]
    assert isinstance(variant.model, Mf)
    assert fit_settings(variant.model, variant.train).loss == LOSSES[text]


def test_ultragcn_gets_its_constraints(tmp_path: Path) -> None:
    model = "{name: mf, similarity: dot, loss: {name: ultragcn, weights: [1, 2, 3, 4], negative_weight: 5}}"
    experiment = load_experiment(str(write_tiny(tmp_path)), ["variants=[mf-full]", f"model={model}"])
    variant = experiment.variants[0]
    assert isinstance(variant.model, Mf)
    got = fit_settings(variant.model, variant.train).loss
    assert got == Loss("ultragcn", constraints=Constraints((1, 2, 3, 4), 5))


@pytest.mark.parametrize(
    ("loss", "similarity", "needed"),
    [("adap_tau", "dot", "cosine"), ("ccl", "dot", "cosine"), ("ultragcn", "cosine", "dot")],
)
def test_a_loss_for_the_other_similarity_is_refused(tmp_path: Path, loss: str, similarity: str, needed: str) -> None:
    overrides = [f"model.loss={{name: {loss}}}", f"model.similarity={similarity}", "variants=[mf-full]"]
    with pytest.raises(ConfigError, match=f"got '{similarity}', but loss {loss} needs '{needed}'"):
        load_experiment(str(write_tiny(tmp_path)), overrides)


def test_a_power_of_the_length_is_for_cosines(tmp_path: Path) -> None:
    config = str(write_tiny(tmp_path))
    for model, message in (
        ("lightgcn, similarity: dot", "is for similarity cosine, got dot; remove it, or set that"),
        ("ngcf, similarity: cosine", r"unknown key \(allowed here: .*\bdropout\b"),
    ):
        override = f"model={{name: {model}, norm_exponent: 0.3}}"
        with pytest.raises(ConfigError, match=f"norm_exponent: {message}"):
            load_experiment(config, [override, "variants=[mf-full]"])


@pytest.mark.parametrize("loss", ["directau", "in_batch_softmax"])
def test_negatives_that_no_loss_reads_are_refused(tmp_path: Path, loss: str) -> None:
    config = write_tiny(tmp_path)
    override = f"variants.mf-full.model.loss={{name: {loss}}}"
    load_experiment(str(config), [override])  # count: 16 of the file is what the other variants use
    own = "variants.mf-full.model.negatives={count: 9, reject_positives: true}"
    with pytest.raises(
        ConfigError, match=rf"negatives: loss {loss} draws none, so that count: 9, reject_positives: True"
    ):
        load_experiment(str(config), [override, own])
    with pytest.raises(ConfigError, match=r"tiny.yaml:8: .*negatives: loss .* count: 16 would be ignored; remove it"):
        load_experiment(str(config), [f"model.loss={{name: {loss}}}"])
    load_experiment(str(config), [override, "variants=[mf-full]"])  # still the file's, for the others


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{name: mf, negatives: {shared: false, group: 4}}", "mf with sampled_softmax and shared: false"),
        ("{similarity: dot, loss: {name: ultragcn}, negatives: {group: 4}}", "mf with ultragcn and shared: true"),
        ("{name: neumf, negatives: {group: 4}}", "neumf with log_loss and shared: true"),
    ],
)
def test_groups_are_of_shared_negatives(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"negatives.group: {message} has no groups; remove it"):
        load_experiment(str(write_tiny(tmp_path)), [f"variants.mf-full.model={model}"])


def test_the_losses_without_negatives_are_those_of_the_library() -> None:
    names = [*get_args(LossName), *get_args(SequenceLossName)]
    drawn = {n: (Loss(n) if n in get_args(LossName) else SequenceLoss(n)).needs_negatives for n in names}
    assert {name for name, needs in drawn.items() if not needs} == set(WITHOUT_NEGATIVES)


VARIANTS = """
  - {name: adap-tau, model: {loss: {name: adap_tau, warmup_epochs: 2, beta: 0.5}}, compressor: {name: graphhash}}
  - {name: ultragcn, model: {similarity: dot, loss: {name: ultragcn, negative_weight: 2}}}
  - {name: ials, model: {name: ials, dim: 6, regularization: 0.01}}
"""


def test_a_run_of_them_beats_popularity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    config = write_tiny(tmp_path)
    head = config.read_text().split("  - {name: item-knn")[0]
    config.write_text(head + VARIANTS.lstrip("\n"))
    run = run_experiment(
        load_experiment(str(config), [f"output={tmp_path / 'runs'}", "train.checkpoint_minutes=1"]), quiet=True
    )
    variants = json.loads((run / "metrics.json").read_text())["variants"]
    recall = {variant["name"]: variant["metrics"]["test/recall@5"] for variant in variants}
    assert len(recall) == 4 and all(recall[name] > recall["popularity"] for name in recall if name != "popularity")
    assert load_model(run / "variants" / "ials-s0" / "checkpoint").num_items == 40
