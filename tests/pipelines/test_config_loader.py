"""Configurations: merging, overrides, and every mistake at once with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from event_files import own_files

from pipelines.config import Experiment
from pipelines.config_loader import config_hash, deep_merge, find_config, list_configs, load_experiment, read_yaml
from pipelines.config_models import Mf
from pipelines.config_problems import ConfigError

BASE = """\
experiment: tiny
dataset: {name: tiny, source: events.csv}
budget: {rows: 50%}
model: {name: mf, dim: 8, optimizer: {name: adam, lr: 0.1}}
train: {epochs: 3}
variants:
  - {name: pop, model: {name: popularity}}
  - {name: full, compressor: {name: full}}
  - {name: mf.v2, model: {dim: 4}, train: {epochs: 7}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    events = tmp_path / "events.csv"
    events.write_text("user_id,item_id\n1,2\n")
    path = tmp_path / "tiny.yaml"
    path.write_text(BASE.replace("events.csv", str(events)))
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(path), overrides)
    return [str(problem) for problem in caught.value.problems]


def variant(experiment: Experiment, name: str) -> Mf:
    model = next(v.model for v in experiment.variants if v.name == name)
    assert isinstance(model, Mf)
    return model


def test_defaults_are_merged_into_variants_and_another_model_replaces_them(config: Path) -> None:
    experiment = load_experiment(str(config))
    assert [v.model.name for v in experiment.variants] == ["popularity", "mf", "mf"]
    assert [v.train.epochs for v in experiment.variants] == [3, 3, 7]
    assert variant(experiment, "mf.v2").dim == 4
    assert variant(experiment, "mf.v2").optimizer.lr == 0.1


def test_overrides_beat_file_defaults_beat_nothing_more_specific(config: Path) -> None:
    experiment = load_experiment(str(config), ["train.epochs=1", "model.dim=16", "variants.mf.v2.model.dim=2"])
    assert [v.train.epochs for v in experiment.variants] == [1, 1, 1]
    assert variant(experiment, "full").dim == 16
    assert variant(experiment, "mf.v2").dim == 2


def test_override_values_are_yaml_and_variants_can_be_selected(config: Path) -> None:
    experiment = load_experiment(str(config), ["seeds=[3, 4]", "variants=[full, pop]", "tracking.enabled=no"])
    assert experiment.seeds == (3, 4)
    assert [v.name for v in experiment.variants] == ["full", "pop"]
    assert experiment.tracking.enabled is False


def test_an_override_of_the_budget_replaces_the_other_ways_to_say_it(config: Path) -> None:
    budget = load_experiment(str(config), ["budget.resolution=20"]).budget
    assert (budget.rows, budget.resolution) == (None, 20.0)


def test_dataset_base_comes_under_the_own_keys_and_can_be_changed(config: Path) -> None:
    (config.parent / "base.yaml").write_text("name: b\nsource: nowhere\nfilters: {user_core: 2, item_core: 3}\n")
    text = config.read_text().replace("{name: tiny,", "{base: base.yaml, filters: {item_core: 9},")
    config.write_text(text)
    dataset = load_experiment(str(config)).dataset
    assert (dataset.name, dataset.filters.user_core, dataset.filters.item_core) == ("b", 2, 9)


def test_every_mistake_is_told_at_once_with_place_value_and_suggestion(config: Path) -> None:
    config.write_text(
        config.read_text()
        .replace("dim: 8", "dmi: 8, loss: {name: bpr, gamma: 1}")
        .replace("{epochs: 3}", "{epochs: 0}")
        .replace("{name: full}", "{name: graphhsh}")
        .replace("{name: popularity}", "{name: popularitty}")
    )
    found = mistakes(config, "trian.epochs=3", "seeds=[]", "variants.fulll.train.epochs=1")
    expected = [
        "command line: variants.fulll.train.epochs: no such variant; did you mean `full`? (there are pop, full, mf.v2)",
        f"{config}:7: variants.pop.model: name is 'popularitty', must be one of mf, lightgcn, ngcf, kgat,",
        f"{config}:4: model.dmi: unknown key; did you mean `dim`? (allowed here: dim, optimizer,",
        f"{config}:4: model.loss.gamma: unknown key (allowed here: name)",
        f"{config}:5: train.epochs: got 0: input should be greater than or equal to 1",
        f"{config}:8: variants.full.compressor.name: got 'graphhsh', must be one of full, modulo,",
        "command line: trian: unknown key; did you mean `train`? (allowed here: experiment,",
        "command line: seeds: got []: tuple should have at least 1 item",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)
    assert len(found) == len(expected)


RULES = {
    "budget={}": "budget: exactly one of rows, table_mib, resolution must be set, got none",
    "budget={rows: 5, resolution: 2}": "budget: exactly one of rows, table_mib, resolution must be set, got rows: 5",
    "budget.rows=160": None,
    "budget.rows=16x": "budget.rows: got '16x', must be a share in (0, 100]",
    "budget.rows=0%": "budget.rows: got '0%', must be a share in (0, 100]",
    "budget.rows=1": "budget.rows: got 1, must be at least 2",
    "seeds=[1, 1]": "seeds: got [1, 1], a seed occurs twice",
    "evaluate.k=[5, 500]": "evaluate.k: got [5, 500], each must lie in [1, 200]",
    "train.selection=recal@20": "train.selection: got 'recal@20'; did you mean `recall`?",
    "evaluate.k=[5, 10]": "evaluate.k: got [5, 10] without the k of train.selection 'recall@20'; set it to [5, 10, 20]",
    "train.selection=auc": "train.selection: got 'auc', must be one of recall@K",
    "variants.pop.compressor.name=full": "variants.pop.compressor: model 'popularity' has no embedding table",
    "variants.full.model.backend=fbgemm": "model.optimizer.name: the fbgemm back end has no adam",
    "variants.full.compressor={name: lsh, levels: {count: 2}}": "variants.full.compressor.levels: only multi_graphhash",
    "variants.full.compressor={name: residual_codes, levels: {head_share: 0.9, hash_share: 0.1}}": (
        "variants.full.compressor.levels: head_share, hash_share, neighbour_share and popularity_share must be below 1"
        " together, got 0.9, 0.1, 0.0 and 0.0"
    ),
    "variants.full.compressor={name: multi_graphhash, levels: {count: 2, weights: [1]}}": (
        "variants.full.compressor.levels.weights: got 1 weights for 2 levels"
    ),
    "variants.full.compressor={name: multi_graphhash, levels: {count: 2, weights: [1, 2]}}": None,
    "variants.full.compressor={name: lsh, algorithm: leiden}": "full.compressor.algorithm: only graphhash, double_gra",
    "variants.full.compressor={name: multi_graphhash, algorithm: leiden}": None,
    "variants.full.compressor={name: lsh, semantic: {n: 2}}": "full.compressor.semantic: only semantic_ngram and",
    "variants.full.compressor.name=semantic_spm": "semantic_spm needs codes of the items: add a section `semantic_ids`",
    "variants.full.compressor={name: semantic_ngram, semantic: {codes: graph}}": None,
    "semantic_ids={tokeniser: {name: rq_kmean}}": "semantic_ids.tokeniser",
    "semantic_ids={tokeniser: {name: rq_kmeans, widths: [4, 0]}}": "semantic_ids.tokeniser.widths.1: got 0:",
    "semantic_ids={features: [{name: matrix, source: absent.npy}]}": "features.0.source: 'absent.npy' is no",
    "semantic_ids={tokeniser: {name: random}, without_content: share}": "without_content: random ids are not made",
    "semantic_ids={tokeniser: {name: random}, features: [{name: spectral}]}": "semantic_ids.features: random ids are",
    "variants.full.compressor={name: semantic_ngram, semantic: {codes: graph, n: 4}}": "got 4, but the codes have 3",
    "variants.full.compressor={name: semantic_spm, semantic: {codes: graph, n: 2}}": "semantic.n: semantic_spm finds",
    "variants.full.name=pop": "variants.pop.name: 'pop' is the name of two variants",
    "dataset.split={valid: 0.5, test: 0.5}": "dataset.split: valid (0.5) + test (0.5) leave nothing for training",
    "dataset.source=nowhere.csv": "dataset.source: source 'nowhere.csv' has no file",
    "dataset.base=animee": "dataset.base: animee: no such file or packaged configuration",
    "variants=[ful]": "variants: no variant 'ful'; did you mean `full`?",
    "train": "train: an override is written key=value",
    "train=[}": "train: '[}' is not YAML",
    "experiment.x=1": "experiment.x: experiment is 'tiny', it has no keys",
    "train=3": "train: got 3, must be a mapping with the keys epochs,",
}


@pytest.mark.parametrize("override", RULES)
def test_rules_across_fields(config: Path, override: str) -> None:
    message = RULES[override]
    if message is None:
        load_experiment(str(config), [override])
        return
    found = mistakes(config, override)
    assert len(found) == 1, found
    assert message in found[0]


def test_features_of_the_file_do_not_hinder_another_tokeniser(config: Path) -> None:
    features = "semantic_ids={features: [{name: spectral}], without_content: share}"
    load_experiment(str(config), [features, "semantic_ids.tokeniser={name: random}"])


def test_a_missing_source_is_told_together_with_other_mistakes(config: Path) -> None:
    found = mistakes(config, "train.epochs=0", "dataset.source=nowhere.csv")
    assert any("train.epochs: got 0" in line for line in found)
    assert any("dataset.source: source 'nowhere.csv' has no file" in line for line in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML: expected ',' or ']'"),
        ("- a\n- b\n", "must be a mapping of keys to values"),
        ("", "must be a mapping of keys to values"),
        ("a: 1\nb: 2\na: 3\n", "bad.yaml:3: a: is set twice, first at"),
        ("a: !!python/object/apply:os.system [echo]\n", "is not plain YAML: could not determine a constructor"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="1 mistake in the configuration") as caught:
        read_yaml(path)
    assert message in str(caught.value)


def test_a_file_in_another_encoding_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes("a: caf\u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad.yaml: is not UTF-8 \(byte 6\)"):
        read_yaml(path)


def test_names_mean_packaged_files_and_unknown_ones_get_a_suggestion() -> None:
    assert find_config("quickstart") == find_config("quickstart.yaml")
    assert find_config("quickstart") in list_configs()
    with pytest.raises(
        ConfigError, match=r"dataset.bse: unknown key; did you mean `base`\? \(allowed here: name, .*, base\)"
    ):
        load_experiment("quickstart", ["dataset.bse=anime"])
    with pytest.raises(ConfigError, match="did you mean `quickstart`"):
        find_config("quikstart")
    with pytest.raises(ConfigError, match="no such file"):
        find_config("elsewhere/quickstart.yaml")


@pytest.mark.usefixtures("shared_data")
@pytest.mark.parametrize("path", list_configs(), ids=lambda path: path.stem)
def test_packaged_experiments_load_and_say_what_they_need(path: Path, tmp_path: Path) -> None:
    load_experiment(str(path), own_files(path.stem, tmp_path))
    head = path.read_text().split("experiment:")[0]
    for needed in (f"recsys run {path.stem}", "Shows:", "Metric:", "minutes", "GiB"):
        assert needed in head


def test_the_hash_depends_on_what_determines_the_results_only(config: Path) -> None:
    plain = config_hash(load_experiment(str(config)))
    same = load_experiment(str(config), ["tracking.enabled=false", "output=elsewhere", "description=other"])
    assert config_hash(same) == plain
    assert config_hash(load_experiment(str(config), ["seeds=[1]"])) != plain
    # A column that is switched off is not the same as one that is guessed.
    assert config_hash(load_experiment(str(config), ["dataset.columns.rating=null"])) != plain


def test_deep_merge_replaces_what_has_another_name() -> None:
    base = {"loss": {"name": "bpr", "x": 1}, "y": [1]}
    assert deep_merge(base, {"loss": {"name": "softmax"}, "y": [2]}) == {"loss": {"name": "softmax"}, "y": [2]}
    assert deep_merge(base, {"loss": {"x": 2}})["loss"] == {"name": "bpr", "x": 2}
    assert base == {"loss": {"name": "bpr", "x": 1}, "y": [1]}
