import shutil

import numpy as np
import pytest
from report_fixture import Planted, write_dataset, write_run

from pipelines.compare import compare_runs
from pipelines.errors import DataError
from pipelines.run_files import RunFiles
from recsys.significance import holm, paired_test

FIRST = (
    Planted("popularity", "popularity", None, 3.0),
    Planted("full", "mf", "full", 0.5, 820, valid=0.3),
    Planted("modulo", "mf", "modulo", 2.0, 133, valid=0.2),
)
SECOND = (
    Planted("popularity", "popularity", None, 3.0),
    Planted("full", "mf", "full", 1.2, 820, valid=0.2),
    Planted("graphhash", "mf", "graphhash", 0.2, 133, valid=0.3),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("compare") / "data")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset):
    root = tmp_path_factory.mktemp("compare")
    return [
        write_run(root / "first-1", dataset, FIRST, seeds=(0,)),
        write_run(root / "second-2", dataset, SECOND, seeds=(0,)),
        write_run(root / "third|3", dataset, FIRST[:2], seeds=(0,), data_hash="d" * 64),
    ]


def test_same_names_and_the_best_are_compared_with_the_first_run(runs):
    comparison = compare_runs(runs[:2])
    found = {(pair.name, pair.against): pair for pair in comparison.pairs}
    assert list(found) == [("popularity", "popularity"), ("full", "full"), ("graphhash", "full")]
    assert found["popularity", "popularity"].difference == 0
    assert found["popularity", "popularity"].verdict == "no difference shown"
    assert found["full", "full"].verdict == "worse"
    assert found["graphhash", "full"].verdict == "better"
    values = [RunFiles(run).per_user("full", 0)["recall@20"].to_numpy() for run in runs[:2]]
    full = found["full", "full"]
    assert full.difference == pytest.approx(values[1].mean() - values[0].mean())
    assert full.low < full.difference < full.high < 0
    assert full.users == len(values[0])


def changed(run, to, valid=None, **update):
    """A copy of a run under another name, with other validation values (one for each variant, None for no value)."""
    files = RunFiles(shutil.copytree(run, to))
    found = files.metrics()
    for place, value in enumerate(valid or ()):
        metrics = {k: v for k, v in found.variants[place].metrics.items() if not k.startswith("valid/")}
        metrics |= {} if value is None else {"valid/recall@20": value}
        variant = found.variants[place].model_copy(update={"metrics": metrics})
        found = found.model_copy(update={"variants": (*found.variants[:place], variant, *found.variants[place + 1 :])})
    files.write_metrics(found.model_copy(update=update))
    return files.directory


def compared(*runs, **arguments):
    return [(pair.name, pair.against) for pair in compare_runs(list(runs), **arguments).pairs]


SAME = [("popularity", "popularity"), ("full", "full")]


def test_validation_chooses_what_stands_for_a_run_and_test_never(runs, tmp_path):
    lucky = changed(runs[0], tmp_path / "lucky", (None, 0.2, 0.3))
    assert compared(lucky, runs[1]) == [*SAME, ("graphhash", "modulo")]
    undecided = changed(runs[0], tmp_path / "undecided", (None, None, None))
    assert compared(undecided, runs[1]) == SAME
    assert compared(runs[1], undecided) == SAME
    on_test = changed(runs[0], tmp_path / "on_test", (None, None, None), selected_on="test")
    assert compared(on_test, runs[1]) == [*SAME, ("graphhash", "full")]


def test_variants_are_chosen_by_the_mean_of_their_seeds(dataset, tmp_path):
    run = write_run(tmp_path / "run", dataset, FIRST, seeds=(0, 1))
    swinging = changed(run, tmp_path / "swinging", (None, None, 0.2, 0.2, 0.35, 0.01))
    assert compared(swinging, run) == [*SAME, ("modulo", "modulo")]


def test_named_variants_alone_are_compared(runs):
    assert compared(*runs[:2], variants=["full"]) == [("full", "full")]
    assert compared(*runs[:2], variants=["modulo", "graphhash"]) == [("graphhash", "modulo")]
    with pytest.raises(
        DataError, match=r"second-2 has no variant 'modulo' .*\(there are popularity, full, graphhash\)"
    ):
        compare_runs(runs[:2], variants=["modulo"])
    with pytest.raises(DataError, match=r"one for each of the 2 in their order; got 3: a, b, c"):
        compare_runs(runs[:2], variants=["a", "b", "c"])


def test_runs_without_a_pair_ask_for_names(runs, dataset, tmp_path):
    closed = tuple(Planted(name, "mf", "full", noise, 820) for name, noise in (("gf-cf", 0.5), ("bspm", 0.2)))
    other = write_run(tmp_path / "other", dataset, closed, (0,))
    with pytest.raises(DataError, match=r"measured none of gf-cf, bspm of .*other, .*: --variant NAME --variant NAME"):
        compare_runs([runs[0], other])
    alone = write_run(tmp_path / "alone", dataset, closed[:1], (0,))
    assert compared(runs[0], alone) == [("gf-cf", "full")]


def test_without_a_metric_the_one_that_selected_is_compared(runs, tmp_path):
    places = [shutil.copytree(run, tmp_path / run.name) for run in runs[:2]]
    files = RunFiles(places[0])
    config = files.config()
    chosen = tuple(
        v.model_copy(update={"train": v.train.model_copy(update={"selection": "ndcg@10"})}) for v in config.variants
    )
    files.write_config(config.model_copy(update={"variants": chosen}))
    assert compare_runs(places).metric == "ndcg@10"
    assert compare_runs(places, "recall@20").metric == "recall@20"


def test_p_values_are_holm_corrected_over_the_comparison(runs):
    comparison = compare_runs(runs[:2], "ndcg@10")
    raw = []
    for pair in comparison.pairs:
        a = RunFiles(runs[1]).per_user(pair.name, 0)["ndcg@10"].to_numpy()
        b = RunFiles(runs[0]).per_user(pair.against, 0)["ndcg@10"].to_numpy()
        raw.append(paired_test(a, b, 0).p)
    assert [pair.p for pair in comparison.pairs] == holm(raw)


def test_only_common_users_count(runs, tmp_path):
    files = RunFiles(runs[1])
    frame = files.per_user("full", 0)
    some = frame.sample(fraction=1.0, shuffle=True, seed=1).head(300)
    partial = RunFiles(tmp_path / "partial")
    partial.write_metrics(
        files.metrics().model_copy(update={"variants": tuple(v for v in files.metrics().variants if v.name == "full")})
    )
    partial.write_per_user(
        "full", 0, some["user"].to_numpy(), some["raw_id"].to_list(), {"recall@20": some["recall@20"].to_numpy()}
    )
    (pair,) = compare_runs([runs[0], partial.directory]).pairs
    assert pair.users == 300
    reference = RunFiles(runs[0]).per_user("full", 0)
    theirs = reference.filter(np.isin(reference["user"].to_numpy(), some["user"].to_numpy()))["recall@20"]
    assert pair.against_value == pytest.approx(theirs.mean())
    assert pair.value == pytest.approx(some["recall@20"].mean())


def test_the_table_is_plain_text_markdown_and_html(runs, tmp_path):
    comparison = compare_runs(runs[:2], out=tmp_path / "table.md")
    text, markdown = str(comparison), (tmp_path / "table.md").read_text()
    assert text.splitlines()[0] == (
        "recall@20 on test against run first-1, 500 common users, means over seeds, paired sign-flip test,"
        " Holm over 3 pairs"
    )
    assert "graphhash" in text
    assert "better" in text
    assert markdown == comparison.markdown()
    assert {line.count("|") for line in markdown.splitlines()[2:]} == {11}
    compare_runs(runs[:2], out=tmp_path / "table.html")
    page = (tmp_path / "table.html").read_text()
    assert "second-2" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_run_selected_on_test_is_labelled_and_warned_of(runs, tmp_path):
    honest = str(compare_runs(runs[:2]))
    assert "selected" not in honest
    parity = tmp_path / "parity"
    shutil.copytree(runs[1], parity)
    files = RunFiles(parity)
    files.write_metrics(files.metrics().model_copy(update={"selected_on": "test"}))
    mixed = compare_runs([runs[0], parity])
    for text in (str(mixed), mixed.markdown(), mixed.html()):
        assert "epochs selected on test: parity" in text
        assert "WARNING: the other runs selected on validation" in text
    both = compare_runs([parity, parity]).heading
    assert "epochs selected on test: parity (1), parity (2)" in both
    assert "WARNING" not in both


def test_other_data_is_refused(runs):
    with pytest.raises(DataError, match=r"same data .*first-1 has dataset hash cccccccccccc .*has dddddddddddd"):
        compare_runs([runs[0], runs[2]])


def test_one_run_is_refused(runs):
    with pytest.raises(DataError, match="a comparison needs two runs or more, got 1"):
        compare_runs(runs[:1])


def test_an_unknown_metric_offers_the_known_ones(runs):
    with pytest.raises(DataError, match=r"no per-user values of 'recal@20' on test; did you mean recall@20"):
        compare_runs(runs[:2], "recal@20")


def test_an_unknown_suffix_is_refused(runs, tmp_path):
    with pytest.raises(DataError, match=r"written as \.html or \.md, got 'table.csv'"):
        compare_runs(runs[:2], out=tmp_path / "table.csv")


def test_runs_without_a_common_user_are_refused(runs, tmp_path):
    files = RunFiles(tmp_path / "others")
    metrics = RunFiles(runs[0]).metrics()
    files.write_metrics(metrics.model_copy(update={"variants": metrics.variants[:1]}))
    files.write_per_user("popularity", 0, np.array([900_000]), ["x"], {"recall@20": np.array([1.0])})
    with pytest.raises(DataError, match="run others and the reference have no evaluated user in common"):
        compare_runs([runs[0], files.directory])
