"""The page in a real browser: its script runs, draws, answers, and nothing sticks out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from selectolax.lexbor import LexborHTMLParser

from lcl_composer.report.report_page import render
from lcl_composer.report.run import read_runs
from tests.report.run_folders import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: Collects errors, uses every control, and leaves what it saw in the page.
PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const all = (query) => [...document.querySelectorAll(query)];
  const curves = () => all("#panels .curve").length;
  const before = curves();
  all("#legend button")[0].click();
  const fewer = curves();
  all("#legend button")[0].click();
  document.getElementById("log").click();
  const axis = document.getElementById("axis");
  axis.value = "tokens";
  axis.dispatchEvent(new Event("change"));
  const chart = document.querySelector("#panels svg"), box = chart.getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + 50 };
  chart.dispatchEvent(new PointerEvent("pointermove", at));
  const seen = { before, fewer, after: curves(), tip: document.querySelector(".tip").textContent,
    paths: all("#panels .curve").every((c) => !/NaN|Infinity/.test(c.getAttribute("d"))),
    wide: document.documentElement.scrollWidth - innerWidth, errors };
  document.body.insertAdjacentHTML("beforeend", "<pre id='seen'></pre>");
  document.getElementById("seen").textContent = JSON.stringify(seen);
}, 100));
</script>"""
CATCH = "<script>const errors = []; addEventListener('error', (e) => errors.push(e.message));</script>"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here; apt-get install chromium")
@pytest.mark.parametrize("width", [1400, 900])
def test_the_page_works_in_a_browser(tmp_path: Path, width: int) -> None:
    folders = [write_run(tmp_path, f"seeds-{seed}", seed=seed, batches=120, pictures=True) for seed in (1, 2)]
    folders += [
        write_run(tmp_path, "x" * 60, lr=2, batches=700),
        write_run(tmp_path, "none", batches=0, lr=3),
    ]
    page = render(read_runs(folders), "0")
    page = re.sub("<meta http-equiv[^>]*>", "", page)  # the policy lets no probe in
    page = page.replace("<head>", f"<head>{CATCH}").replace("</body>", f"{PROBE}</body>")
    (tmp_path / "page.html").write_text(page)
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"]
    command += ["--virtual-time-budget=4000", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    found = LexborHTMLParser(done.stdout).css_first("#seen")
    assert found is not None, done.stderr[-2000:]
    seen = json.loads(found.text())
    assert seen["errors"] == []
    assert seen["after"] == seen["before"] > seen["fewer"] > 0
    assert seen["paths"]
    assert seen["wide"] <= 0
    assert seen["tip"].startswith("tokens")
    assert "seeds" in seen["tip"]
