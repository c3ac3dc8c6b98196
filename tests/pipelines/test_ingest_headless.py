"""CSV and TSV files whose first line is an event."""

from pathlib import Path
from typing import Any

import pytest
from malformed import COLUMNS
from test_ingest import frame, run, write

from pipelines import config
from pipelines.errors import DataError


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_files_without_a_header_line_are_read_with_given_names(bom: bytes, tmp_path: Path) -> None:
    reference = run(write(tmp_path / "r.parquet", frame()), tmp_path / "reference")
    (tmp_path / "u.data").write_bytes(bom + frame().write_csv(separator="\t", include_header=False).encode())
    (tmp_path / "u.csv").write_text("7,Seven up\n30,Thirty\n")
    items = config.Entities(source="u.csv", id="i", title="t", columns_without_header=("i", "t"))
    dataset = run(tmp_path / "u.data", tmp_path / "out", format="tsv", columns_without_header=COLUMNS, items=items)
    assert dataset.manifest.counts == reference.manifest.counts
    assert dataset.frame().equals(reference.frame())
    assert dataset.item_titles() == ["4", "Seven up", "Thirty", "100"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            r"e.csv: there is no column 'user_id' for the user.*the first line is an.*columns_without_header: \[",
        ),
        ({"columns_without_header": COLUMNS[:3]}, r"e.csv, line 1: 4 cells, but columns_without_header names 3; name"),
        ({"columns_without_header": (*COLUMNS[:3], "x")}, r"row 2 \(line 2\), column 'item_id': value 'x'"),
        (
            {"columns_without_header": COLUMNS, "format": "jsonl"},
            "columns_without_header is for csv and tsv; e.csv is jsonl, leave it out",
        ),
    ],
    ids=["no names", "too few", "a bad row", "of another format"],
)
def test_mistakes_with_headers_are_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("3,7,4.0,1600000037\n3,x,4.0,1600000038\n3,8,4.0,1600000039\n3,9,4.0,1600000040\n")
    with pytest.raises(DataError, match=message):
        run(tmp_path / "e.csv", tmp_path / "out", **settings)
