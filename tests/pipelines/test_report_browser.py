import json
import re
import shutil
import subprocess

import pytest
from report_fixture import DEFAULT, write_dataset, write_run
from report_page import Page

from pipelines.report import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """
const pick = (id, value) => {
  const e = document.getElementById(id);
  e.value = value;
  e.dispatchEvent(new Event("change"));
};
const list = document.getElementById("explorer-users");
list.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
const second = list.getAttribute("aria-activedescendant");
list.dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
const last = list.getAttribute("aria-activedescendant");
pick("heat-b", "1");
const classes = [...document.querySelectorAll("#heat .cell")].map((cell) => cell.getAttribute("class"));
document.getElementById("theme").click();
const probe = {
  second,
  last,
  options: list.children.length,
  bad: document.querySelectorAll("img, #explorer script").length,
  difference: classes.every((c) => /^cell (none|d[0-8])$/.test(c)),
  theme: document.documentElement.dataset.theme,
  selected: document.querySelectorAll("[aria-selected=true]").length,
  caption: document.getElementById("heat-caption").textContent,
};
document.title = "PROBE" + JSON.stringify(probe);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; what the page holds is tested without it")
def test_the_page_works_by_keyboard_in_a_browser(tmp_path):
    dataset = write_dataset(tmp_path / "data")
    report = build_report(write_run(tmp_path / "run", dataset, DEFAULT[2:], seeds=(0,)), dataset)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    copy = tmp_path / "probe.html"
    copy.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom",
               f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    probe = json.loads(Page(done.stdout).find("title")[0].text.removeprefix("PROBE"))
    assert probe["second"] == "explorer-user-1"
    assert probe["last"] == f"explorer-user-{probe['options'] - 1}"
    assert probe["selected"] == 1
    assert probe["difference"]
    assert probe["bad"] == 0
    assert probe["theme"] in ("light", "dark")
    assert probe["caption"].startswith("full minus double-graphhash")
