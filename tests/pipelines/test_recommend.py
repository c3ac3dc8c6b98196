"""What a terminal shows of titles that others wrote."""

import json
from pathlib import Path

from tiny_experiment import ITEMS, recsys, write_tiny

from pipelines.recommend import Item, Recommendation, recommend


def test_text_has_no_control_characters_and_json_has_all() -> None:
    evil = "a\x1b[2J\x07b\u202ec\nd"
    found = Recommendation("run", "mf", evil, False, f"user {evil}", (Item("7", evil),), 1, (Item(evil, "ü", 0.5),))
    text = found.text()
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "history of user a[2Jbcd:" in text
    assert "      a[2Jbcd" in text.splitlines()
    assert text.splitlines()[-1] == "    1 ü  0.5000  (a[2Jbcd)"
    assert json.loads(found.json())["items"][0]["id"] == evil


def test_a_user_who_has_had_every_item_is_told_so(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    with (tmp_path / "data" / "interactions.csv").open("a") as events:
        events.writelines(f"all,i{item}\n" for item in range(ITEMS))
    done = recsys(tmp_path, "run", str(config), "variants=[popularity]", f"output={tmp_path}")
    run = Path(done.stdout.splitlines()[-1])
    found = recommend(run, "all")
    assert (found.items, found.note) == ((), "user all has had all 40 items, so that none is left to recommend")
    assert recommend(run, "u1").note == ""
