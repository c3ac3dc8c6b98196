"""A knowledge graph from its files to an explained recommendation."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pipelines import config
from pipelines.config_knowledge import KnowledgeFiles
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.ingest import ingest
from pipelines.knowledge import open_knowledge
from tests.pipelines.tiny_experiment import GROUPS, ITEMS, recsys, write_tiny

SECTION = {
    "triples": {"source": "kg.csv"},
    "links": {"source": "links.csv"},
    "relations": {"source": "relations.csv", "id": "id", "name": "name"},
    "entities": {"source": "entities.csv", "id": "id", "name": "name"},
}
TRIPLES = ["head,relation,tail", *(f"e{item},has,group{item % GROUPS}" for item in range(ITEMS)), "e0,near,lonely"]
LINKS = ["item_id,entity_id", *(f"i{item},e{item}" for item in range(ITEMS)), "i999,e999"]
RELATIONS = ["id,name", "has,is in group", "near,is near", "never,not used"]
ENTITIES = ["id,name", *(f"group{group},Group <{group}>" for group in range(GROUPS)), "lonely,The lonely"]
ENTITIES += [f"e{item},Item {item}" for item in range(ITEMS)]


def write(data: Path, **changed: list[str]) -> None:
    files = {"kg": TRIPLES, "links": LINKS, "relations": RELATIONS, "entities": ENTITIES} | changed
    for name, lines in files.items():
        (data / f"{name}.csv").write_text("\n".join(lines) + "\n")


def made(directory: Path, section: dict[str, object] | None = None, **changed: list[str]) -> Dataset:
    data = write_tiny(directory).parent / "data"
    write(data, **changed)
    files = KnowledgeFiles.model_validate(SECTION if section is None else section)
    return ingest(config.Dataset(name="tiny", source=str(data), knowledge_graph=files), directory / "dataset")


def test_items_come_first_and_names_follow(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    found = open_knowledge(dataset)
    assert (found.graph.num_items, found.graph.num_entities) == (dataset.num_items, dataset.num_items + GROUPS + 1)
    assert found.entity_names == [*(f"Group <{group}>" for group in range(GROUPS)), "The lonely"]
    assert found.relation_names == ["is in group", "is near"]
    for head, relation, tail in found.graph.triples.tolist():
        item = int(dataset.raw_item_ids()[head][1:])
        name = found.entity_names[tail - dataset.num_items]
        assert (relation, name) in [(0, f"Group <{item % GROUPS}>"), (1, "The lonely")]
    facts = dataset.manifest.knowledge_graph
    assert (facts["linked_items"], facts["links_without_interactions"]) == (ITEMS, 1)
    assert (facts["triples"], facts["entities"], facts["repeated_triples"]) == (ITEMS + 1, GROUPS + 1, 0)


def test_the_core_and_repeats_are_dropped_and_the_hash_follows(tmp_path: Path) -> None:
    plain = made(tmp_path / "plain")
    core = made(tmp_path / "core", SECTION | {"entity_core": 2}, kg=[*TRIPLES, TRIPLES[1]])
    facts = core.manifest.knowledge_graph
    assert (facts["repeated_triples"], facts["entities_below_core"], facts["triples_below_core"]) == (1, 1, 1)
    assert open_knowledge(core).entity_names == [f"Group <{group}>" for group in range(GROUPS)]
    assert len({plain.content_hash, core.content_hash}) == 2
    assert plain.manifest.train_hash == core.manifest.train_hash


def test_without_files_of_names_ids_are_names(tmp_path: Path) -> None:
    found = open_knowledge(made(tmp_path, {"triples": SECTION["triples"], "links": SECTION["links"]}))
    assert found.relation_names == ["relation has", "relation near"]
    assert found.entity_names[-1] == "entity lonely"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kg": ["head,relation", "e0,has"]}, r"kg.csv: there is no column 'tail' for knowledge_graph.triples"),
        (
            {"kg": ["head,relation,tail", "e0,has,group0", "e1,,group1"]},
            r"kg.csv, row 2, column 'relation': the cell is",
        ),
        ({"links": ["item_id,entity_id", "i0,e0", "i1,e0"]}, r"links.csv, row 2, column 'entity_id': value 'e0' was"),
        (
            {"links": ["item_id,entity_id", "i0,e0", "i0,e1"]},
            r"links.csv, row 2, column 'item_id': value 'i0' was linked",
        ),
        (
            {"links": ["item_id,entity_id", "x,e0"]},
            r"links.csv, column 'item_id': no id is that of an item.*are 'x', the",
        ),
        ({"entities": ENTITIES[:2]}, r"kg.csv has entity 'e0' \(\d+ such\), but entities.csv, column 'id', has not"),
        ({"relations": RELATIONS[:2]}, r"kg.csv has relation 'near' \(1 such\), but relations.csv, column 'id', has"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(tmp_path, **changed)


def test_a_missing_file_and_ids_that_are_no_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"knowledge_graph.triples.source 'kgg.csv' is not in .*kg.csv"):
        made(tmp_path / "one", SECTION | {"triples": {"source": "kgg.csv"}})
    data = write_tiny(tmp_path / "two").parent / "data"
    write(data)
    pl.DataFrame({"head": [0.5], "relation": [1], "tail": [2]}).write_parquet(data / "kg.parquet")
    files = KnowledgeFiles.model_validate(SECTION | {"triples": {"source": "kg.parquet"}})
    with pytest.raises(DataError, match=r"kg.parquet, column 'head': ids must be whole numbers or text, got Float64"):
        ingest(config.Dataset(name="tiny", source=str(data), knowledge_graph=files), tmp_path / "two" / "dataset")


def test_a_dataset_without_or_with_a_damaged_graph_says_so(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "plain").parent / "data"
    plain = ingest(config.Dataset(name="tiny", source=str(data)), tmp_path / "plain" / "dataset")
    with pytest.raises(
        DataError, match=r"dataset tiny has no knowledge graph; name its files in dataset.knowledge_graph"
    ):
        open_knowledge(plain)
    damaged = made(tmp_path / "damaged")
    (damaged.path / "kg.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"cannot read the knowledge graph in .*ingest again"):
        open_knowledge(damaged)


def test_a_run_explains_what_it_recommends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny(tmp_path)
    write(path.parent / "data")
    text = path.read_text().replace("variants:", "variants:\n  - {name: kgat, model: {name: kgat, widths: [8]}}", 1)
    path.write_text(text)
    missing = recsys(tmp_path, "validate", path.name)
    assert missing.returncode == 2 and "kgat needs dataset.knowledge_graph" in missing.stderr
    path.write_text(text.replace("  name: tiny\n", f"  name: tiny\n  knowledge_graph: {json.dumps(SECTION)}\n"))
    done = recsys(tmp_path, "run", path.name, "variants=[popularity, kgat]", "train.epochs=2", "--quiet")
    assert done.returncode == 0, done.stderr
    run = done.stdout.splitlines()[-1]
    asked = ("recommend", run, "--user", "u1", "--variant")
    found = recsys(tmp_path, *asked, "kgat", "--explain", "--k", "20")
    assert found.returncode == 0, found.stderr
    assert "user u1 -[interacted with]-> Title <" in found.stdout
    assert "]-> Group <1> -[inverse of is in group]-> Title <" in found.stdout
    stored = json.loads(recsys(tmp_path, *asked, "kgat", "--explain", "--json", "--k", "20").stdout)
    reasons = [reason for item in stored["items"] for reason in item["because"]]
    assert reasons and all(0 < reason["weight"] <= 1 for reason in reasons)
    assert all(len(reason["names"]) == len(reason["relations"]) + 1 <= 4 for reason in reasons)
    monkeypatch.setattr("pipelines.explain.explain", lambda *_: [])
    silent = recsys(tmp_path, *asked, "kgat", "--explain")
    assert silent.stdout.startswith("no fact of the knowledge graph connects these items with the user's history\n")
    refused = recsys(tmp_path, *asked, "popularity", "--explain")
    assert refused.returncode == 2
    assert "variant popularity is of model popularity, which has no knowledge graph to explain by" in refused.stderr
    facts = json.loads((Path(tmp_path / run) / "metrics.json").read_text())["variants"][1]
    assert facts["table_rows"] > 60 + 40
