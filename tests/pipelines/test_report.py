import base64
import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_fixture import DEFAULT, HOSTILE_TITLES, NUM_USERS, Planted, write_dataset, write_run
from report_page import TAGS, Page, plain

from pipelines import report as report_package
from pipelines.report import build_report
from pipelines.report.figures import Panel
from pipelines.report.plots import write_plots
from pipelines.report.render import embed
from pipelines.report.svg import Figure
from pipelines.run_files import DatasetFacts, Metrics, RunError, RunFiles, VariantResult
from recsys.significance import holm, paired_test


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def dataset(root):
    return write_dataset(root / "data")


@pytest.fixture(scope="module")
def run(root, dataset):
    return write_run(root / "run", dataset)


@pytest.fixture(scope="module")
def report(run, dataset):
    return build_report(run, dataset)


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text(encoding="utf-8"))


def build(root, dataset, name, variants, seeds=(0,)):
    path = build_report(write_run(root / name, dataset, variants, seeds), dataset)
    return Page(path.read_text(encoding="utf-8"))


def headline(page):
    return plain(page.find("p", css="headline")[0].text)


def mean_values(run, name, metric="recall@20", seeds=(0, 1)):
    return np.mean([RunFiles(run).per_user(name, seed)[metric].to_numpy() for seed in seeds], axis=0)


def test_the_report_is_one_small_file_that_fetches_nothing(report, page):
    assert report.stat().st_size < 6 * 2**20
    for element in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
            assert element.attributes.get(name, "#").startswith("#"), element
    (style,) = page.find("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    script = page.find("script")[-1].text
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval|innerHTML|insertAdjacentHTML|document\.write)\b", script)


def test_the_security_policy_allows_exactly_this_style_and_script(page):
    (policy,) = [m.attributes["content"] for m in page.find("meta") if m.attributes.get("http-equiv")]
    hashed = [
        "'sha256-" + base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode() + "'"
        for element in (page.find("style")[0], page.find("script")[-1])
    ]
    assert policy == (
        f"default-src 'none'; style-src {hashed[0]}; script-src {hashed[1]}; base-uri 'none'; form-action 'none'"
    )
    assert not [element for element in page.elements if "style" in element.attributes]


def test_nothing_from_the_data_becomes_markup(page, dataset):
    assert {element.tag for element in page.elements} <= set(TAGS.split())
    handlers = [e for e in page.elements if any(name.startswith("on") for name in e.attributes)]
    assert handlers == []
    scripts = page.find("script")
    assert all(script.attributes.get("type") == "application/json" for script in scripts[:-1])
    assert scripts[-1].text == (Path(report_package.__file__).parent / "templates/report.js").read_text(
        encoding="utf-8"
    )
    for script in scripts[:-1]:
        json.loads(script.text)
        assert not set("<>&\u2028\u2029") & set(script.text)
    shown = {e.text for e in page.find("bdi")} | set(page.data("explorer")["titles"])
    short = [title for title in HOSTILE_TITLES if len(title) <= 120]
    assert len(shown & set(short)) >= 5, "the fixture must bring hostile titles into the page"
    assert max(map(len, shown)) <= 120
    assert page.find("h1")[0].text == "planted <b>experiment</b>"
    assert "<script>alert('audit')</script>" in page.find("section", id="data")[0].text
    assert page.find("pre")[0].text == "recsys run planted.yaml 'x=</script><script>alert(9)</script>'"


def test_embedded_json_cannot_leave_its_element():
    value = ["</script><!--", "a & b", "\u2028\u2029", "\\u003c"]
    text = str(embed(value))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="Out of range float values"):
        embed(float("nan"))


def test_headline_compares_the_best_compressed_variants_of_two_families(page, run):
    a, b = mean_values(run, "double-graphhash"), mean_values(run, "frequency")
    found = re.fullmatch(
        r"double-graphhash beats frequency by \+([\d.]+) % recall@20 \[([\d.]+), ([\d.]+)\],"
        r" p (=|<) (\.\d+), (\d+) users\.",
        headline(page),
    )
    gain, low, high = (float(found[i]) for i in (1, 2, 3))
    assert gain == pytest.approx(100 * (a.mean() / b.mean() - 1), abs=0.06)
    assert low < gain < high
    assert float(found[5]) < 0.01
    assert int(found[6]) == len(a) == NUM_USERS


def test_findings_speak_of_the_full_table_and_the_baseline(page, run):
    findings = [plain(p.text) for p in page.find("p", css="finding")]
    kept = 100 * mean_values(run, "double-graphhash").mean() / mean_values(run, "full").mean()
    assert findings[0].startswith(
        f"In 16 % of the full table's bytes, double-graphhash keeps {kept:.0f} % of the recall@20 of full"
    )
    assert findings[1].startswith("full beats item-knn by +")


def test_p_values_are_holm_corrected_over_all_pairs(page, run):
    table = page.data("tests")
    names = [v.name for v in DEFAULT]
    assert len(table["rows"]) == len(names) * (len(names) - 1) // 2
    tests = [paired_test(mean_values(run, row[0]), mean_values(run, row[1]), 0) for row in table["rows"]]
    assert [row[6] for row in table["rows"]] == [test.p for test in tests]
    assert [row[7] for row in table["rows"]] == holm([test.p for test in tests])
    assert all(row[2] > 0 for row in table["rows"]), "the better variant comes first"


def test_a_difference_that_is_noise_is_not_called_a_win(root, dataset):
    variants = (Planted("modulo", "mf", "modulo", 1.0, 133), Planted("frequency", "mf", "frequency", 1.0, 133))
    page = build(root, dataset, "noise", variants)
    assert headline(page).startswith("No difference shown between ")
    assert [mark.text for mark in page.find("span", css="mark")] == ["best", "tied with best"]


def test_one_compressor_at_two_budgets_is_compared_with_the_full_table(root, dataset):
    variants = (
        Planted("full", "mf", "full", 1.0, 800),
        Planted("modulo@16%", "mf", "modulo", 3.0, 128),
        Planted("modulo@50%", "mf", "modulo", 2.0, 400),
    )
    assert headline(build(root, dataset, "budgets", variants)).startswith("full beats modulo@50% by ")


@pytest.mark.parametrize(("noise", "tone"), [(0.1, "alarm"), (1.0, "warning"), (4.0, None)])
def test_banner_when_a_baseline_wins(root, dataset, noise, tone):
    variants = (
        Planted("item-knn", "item_knn", None, noise),
        Planted("full", "mf", "full", 0.35, 820),
        Planted("modulo", "mf", "modulo", 2.0, 133),
    )
    page = build(root, dataset, f"banner-{tone}", variants)
    banners = page.find("div", css="banner")
    assert [banner.attributes["class"] for banner in banners] == ([f"banner {tone}"] if tone else [])
    if tone == "alarm":
        assert banners[0].attributes["role"] == "alert"
        assert "item-knn, a simple baseline, beats every learned variant: recall@20 0." in plain(banners[0].text)
    if tone == "warning":
        assert "beats 1 of 2 learned variants: modulo." in plain(banners[0].text)


def test_a_minimal_run_gives_sentences_instead_of_parts(root):
    result = VariantResult(name="only", model="mf", compressor="full", metrics={"test/recall@20": 0.25})
    facts = DatasetFacts(name="d", users=3, items=4, train=5, hash="h")
    RunFiles(root / "minimal").write_metrics(Metrics(experiment="e", dataset=facts, variants=(result,)))
    page = Page(build_report(root / "minimal").read_text(encoding="utf-8"))
    assert headline(page) == "Only only was evaluated: recall@20 0.2500. There is nothing to compare it with."
    absent = " ".join(plain(p.text) for p in page.find("p", css="absent"))
    reasons = ["no trade-off", "no curves", "paired test", "no heat map", "no slices", "trained by epochs"]
    reasons += ["No variant compresses", "explorer needs", "Samples need", "no leak audit", "no command"]
    for words in reasons:
        assert words in absent, words


def test_without_the_dataset_users_are_not_shown_by_index(run, root):
    copy = shutil.copytree(run, root / "without-dataset")
    page = Page(build_report(copy).read_text(encoding="utf-8"))
    assert page.find(id="explorer") == []
    assert "one of them is not there" in page.find("section", id="users")[0].text


def test_one_seed_says_that_seed_variance_is_unknown(root, dataset):
    page = build(root, dataset, "one-seed", DEFAULT[2:4])
    assert "one seed: unknown" in page.find("section", id="tests")[0].text
    verdict = page.find("section", id="verdict")[0].text
    assert "means over seeds" not in verdict and "with one seed, what another would give is not in it" in verdict


def test_the_same_input_gives_the_same_bytes(run, dataset, report):
    first = report.read_bytes()
    assert build_report(run, dataset).read_bytes() == first


def test_parity_runs_are_labelled(run, root, dataset, page):
    assert page.find("p", css="parity") == []
    copy = RunFiles(shutil.copytree(run, root / "parity"))
    copy.write_metrics(copy.metrics().model_copy(update={"selected_on": "test"}))
    labelled = Page(build_report(copy.directory, dataset).read_text(encoding="utf-8"))
    assert "Epochs were selected on the test split" in plain(labelled.find("p", css="parity")[0].text)


def test_figures_have_words_and_data(page, run):
    for svg in page.find("svg", role="img"):
        assert len(svg.attributes["aria-label"]) > 40, svg
    buttons = {button.attributes["data-csv"] for button in page.find("button", css="download")}
    assert {"pareto", "curve-recall", "curve-ndcg", "learning-metric", "learning-loss", "heat", "tests", "degrees",
            "buckets-users", "buckets-items", "slice-user_activity", "metrics"} <= buttons  # fmt: skip
    for key in buttons:
        table = page.data(key)
        assert table["rows"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}, key
    curve = RunFiles(run).evaluation("full", 0).curves["recall"].mean
    other = RunFiles(run).evaluation("full", 1).curves["recall"].mean
    rows = [row for row in page.data("curve-recall")["rows"] if row[0] == "full"]
    assert [row[2] for row in rows] == pytest.approx([(a + b) / 2 for a, b in zip(curve, other, strict=True)])
    assert len(rows) == 100


def test_the_heat_map_holds_every_variant(page, run):
    heat = page.data("heat-map")
    assert {v["name"] for v in heat["variants"]} == {v.name for v in DEFAULT}
    cells = [e for e in page.find("g") if "cell" in e.attributes["class"]]
    assert len(cells) == 100
    best = heat["variants"][0]["values"]
    for cell in cells:
        value = best[int(cell.attributes["data-row"])][int(cell.attributes["data-column"])]
        assert (value is None) == (cell.attributes["class"] == "cell none")


def test_the_explorer_shows_the_largest_differences_and_true_hits(page, run, dataset):
    explorer = page.data("explorer")
    first = explorer["pairs"][0]
    assert (first["a"], first["b"]) == ("double-graphhash", "frequency")
    difference = mean_values(run, "double-graphhash") - mean_values(run, "frequency")
    shown = [user["a"] - user["b"] for user in first["users"]]
    assert shown[0] == pytest.approx(difference.max(), abs=2e-4)
    assert min(shown) == pytest.approx(difference.min(), abs=2e-4)
    titles, relevant = dataset.item_titles(), dataset.matrix("test")
    for user in first["users"][:5]:
        number = dataset.user_index(user["id"])
        mine = {titles[item][:100] for item in relevant[[number]].indices}
        for title, hit in user["lists"][0]:
            assert (explorer["titles"][title][:100] in mine) == bool(hit)
        newest = dataset.frame("train", "valid").filter(user=number).sort("timestamp", descending=True)["item"][0]
        assert explorer["titles"][user["history"][0]][:100] == titles[newest][:100]


def test_histories_without_times_start_with_the_rarest_item(root):
    dataset = write_dataset(root / "timeless", timestamps=False)
    page = build(root, dataset, "timeless-run", DEFAULT[2:5])
    explorer = page.data("explorer")
    assert not explorer["newest_first"]
    popularity = np.bincount(dataset.matrix("train", "valid").indices)
    by_title = dict(zip((title[:100] for title in dataset.item_titles()), popularity, strict=True))
    counts = [by_title[explorer["titles"][i][:100]] for i in explorer["pairs"][0]["users"][0]["history"]]
    assert counts == sorted(counts)


def test_the_leak_audit_is_shown(page):
    results = [(td.attributes.get("class"), td.text) for td in page.find("td") if td.text in ("pass", "FAIL", "fact")]
    assert results == [("pass", "pass"), ("pass", "pass"), ("fact", "fact")]


def test_a_leak_sounds_the_alarm(root):
    page = build(root, write_dataset(root / "leaky", leak=True), "leaky-run", DEFAULT[2:4])
    assert [td.attributes["class"] for td in page.find("td") if td.text == "FAIL"] == ["fail"]
    assert "No number below can be trusted: events_after_cut failed." in plain(page.find("div", css="alarm")[0].text)


@pytest.mark.parametrize(
    ("noise", "tone", "words"),
    [
        (0.80, "warning", "The best learned variant, modulo, is not significantly better than item-knn (p = "),
        (0.84, "alarm", "item-knn, a simple baseline, is ahead of every learned variant: recall@20 0."),
    ],
)
def test_a_lead_that_may_be_chance_is_called_so(root, dataset, noise, tone, words):
    variants = (Planted("item-knn", "item_knn", None, 0.80), Planted("modulo", "mf", "modulo", noise, 133))
    page = build(root, dataset, f"chance-{tone}", variants)
    assert headline(page).startswith("No difference shown between ")
    (banner,) = page.find("div", css=tone)
    assert words in plain(banner.text)
    assert ("The difference may be chance." in banner.text) == (tone == "alarm")


def test_every_section_is_in_the_contents(page):
    links = [
        a.attributes["href"].removeprefix("#") for a in page.find("nav") + page.find("a") if "href" in a.attributes
    ]
    for target in links:
        assert page.find(id=target), target
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))


def test_a_missing_run_is_an_error(root):
    with pytest.raises(RunError, match=r"metrics\.json does not exist"):
        build_report(root / "nowhere")


SVG = "{http://www.w3.org/2000/svg}"


def test_every_figure_is_a_drawing_of_its_own(run, report, page):
    plots = {path.stem: ElementTree.parse(path).getroot() for path in (run / "plots").iterdir()}
    assert set(plots) == {"pareto", "curve-recall", "curve-ndcg", "learning-metric", "learning-loss",
                          "buckets-users", "buckets-items", "degrees"}  # fmt: skip
    for name, drawing in plots.items():
        _, top, width, height = map(int, drawing.attrib["viewBox"].split())
        assert (int(drawing.attrib["width"]), int(drawing.attrib["height"])) == (width, height)
        style, ground, heading = list(drawing)[:3]
        assert "var(" not in style.text and "light-dark" not in style.text
        assert ground.attrib == {"x": "0", "y": str(top), "width": "100%", "height": "100%", "fill": "#ffffff"}
        assert heading.text in [h.text for h in page.find("h3")], name
        coloured = {c for element in drawing.iter() for c in element.get("class", "").split() if c[0] == "s"}
        assert {c for c in coloured if c[1:].isdigit()} <= {f"s{i}" for i in range(10)}
    shown = {element.text for element in plots["pareto"].iter(f"{SVG}text")}
    assert {"graphhash", "modulo", "full", "embedding tables, MiB (log scale)"} <= shown
    assert len(plots["curve-recall"].findall(f"{SVG}polyline")) == len(DEFAULT)


def test_a_plot_drops_what_xml_cannot_say(root):
    panel = Panel("p", "a\x00b & <c>", Figure("t\x08", "d", 100, 50).render(), "", (), [])
    write_plots(root / "plots", [panel])
    write_plots(root / "plots", [dataclasses.replace(panel, key="q")])
    (path,) = (root / "plots").iterdir()
    drawing = ElementTree.parse(path).getroot()
    assert (path.name, drawing.findall(f"{SVG}text")[0].text) == ("q.svg", "ab & <c>")
