"""A run is ranked and told by the metric that selected its epochs."""

from pathlib import Path

import pytest
from tiny_experiment import write_tiny

from pipelines.config_loader import load_experiment
from pipelines.run_directory import find_variant, headline_metrics, selection_metric
from pipelines.run_files import DatasetFacts, Metrics, RunFiles, VariantResult
from pipelines.summary import summary


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    """A run selected by recall@5, whose best variant by recall@20 is another one."""
    files = RunFiles(tmp_path / "run")
    files.directory.mkdir()
    files.write_config(load_experiment(str(write_tiny(tmp_path)), ["train.selection=recall@5"]))
    values = {"mf-full": (0.3, 0.4), "mf-modulo": (0.2, 0.9)}
    variants = tuple(
        VariantResult(
            name=name,
            model="mf",
            metrics={"test/recall@5": at_5, "test/ndcg@5": at_5 / 2, "test/recall@20": at_20, "test/ndcg@20": at_20},
        )
        for name, (at_5, at_20) in values.items()
    )
    facts = DatasetFacts(name="tiny", users=1, items=1, train=1, valid=1, test=1, hash="c" * 64)
    files.write_metrics(Metrics(experiment="tiny", dataset=facts, variants=variants))
    return files


def test_the_table_is_by_the_selection_metric(
    files: RunFiles, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert headline_metrics(selection_metric(files)) == ["recall@5", "ndcg@5"]
    summary(files)
    shown = capsys.readouterr().out
    assert "recall@5" in shown and "recall@20" not in shown
    assert shown.index("mf-full") < shown.index("mf-modulo")
    monkeypatch.setenv("COLUMNS", "20")
    summary(files)
    assert "0.3000" in capsys.readouterr().out  # a narrow terminal hides nothing
    assert "SELECTED ON TEST" not in shown
    files.write_metrics(files.metrics().model_copy(update={"selected_on": "test"}))
    summary(files)
    assert "SELECTED ON TEST" in capsys.readouterr().out


def test_validation_names_the_default_variant_and_test_only_where_it_selected(files: RunFiles) -> None:
    found = files.metrics()
    full, modulo = found.variants
    lucky = full.model_copy(update={"metrics": full.metrics | {"valid/recall@5": 0.1}})
    better = modulo.model_copy(update={"metrics": modulo.metrics | {"valid/recall@5": 0.2}})
    baseline = VariantResult(name="popularity", model="popularity", metrics={"test/recall@5": 0.9})

    def default(*variants: VariantResult, selected_on: str = "valid") -> str:
        files.write_metrics(found.model_copy(update={"variants": variants, "selected_on": selected_on}))
        return find_variant(files.directory, None).name

    assert default(baseline, lucky, better) == "mf-modulo"
    assert default(baseline, lucky) == "mf-full", "what validation did not measure is no default"
    assert default(modulo, full) == "mf-modulo", "nothing was selected: the first of the configuration"
    assert default(modulo, full, selected_on="test") == "mf-full"


@pytest.mark.parametrize("model", ["{name: two_tower}", "{name: ease, grid: {l2: [1, 2]}}"])
def test_whatever_is_selected_on_validation_counts(files: RunFiles, tmp_path: Path, model: str) -> None:
    chosen = ["variants=[mf-full]", f"variants.mf-full.model={model}", "variants.mf-full.compressor=null"]
    files.write_config(load_experiment(str(tmp_path / "tiny.yaml"), ["train.selection=recall@5", *chosen]))
    assert selection_metric(files) == "recall@5"
