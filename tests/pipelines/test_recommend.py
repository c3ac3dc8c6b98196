"""What a terminal shows of titles that others wrote."""

import json

from pipelines.recommend import Item, Recommendation


def test_text_has_no_control_characters_and_json_has_all() -> None:
    evil = "a\x1b[2J\x07b\u202ec\nd"
    found = Recommendation("run", "mf", evil, False, f"user {evil}", (Item("7", evil),), 1, (Item(evil, "ü", 0.5),))
    text = found.text()
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "history of user a[2Jbcd:" in text
    assert "      a[2Jbcd" in text.splitlines()
    assert text.splitlines()[-1] == "    1 ü  0.5000  (a[2Jbcd)"
    assert json.loads(found.json())["items"][0]["id"] == evil
