"""The page in a browser."""

from __future__ import annotations

import pytest

from tests.inspect.browser import browser

DOCUMENT = "article:nth-of-type(1)"


@pytest.fixture(scope="module")
def tab(page, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        found.open(page)
        yield found


def test_nothing_is_fetched_and_nothing_complains(tab, page):
    urls = tab.requested()
    assert urls[0] == page.as_uri()
    assert [url for url in urls[1:] if not url.startswith("data:")] == []
    assert tab.problems() == []


def test_hostile_text_is_text(tab):
    assert tab.evaluate("document.title") == "set · lcl inspect"
    assert tab.evaluate("document.querySelectorAll('script').length") == 1
    assert "<script>document.title" in tab.evaluate(
        "document.querySelector('article:nth-of-type(8) h2').innerText"
    )


def test_the_policy_stops_scripts_that_slip_through(tab):
    tab.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.taken = 1\">')"
    )
    tab.evaluate(
        "{const s = document.createElement('script'); s.text = 'window.taken = 2'; document.body.append(s)}"
    )
    assert tab.evaluate("window.taken") is None


def test_a_pair_shows_its_context(tab):
    state = f"""(() => {{
        const d = document.querySelector("{DOCUMENT}");
        const opacity = (e) => Number(getComputedStyle(e).opacity);
        for (const e of d.querySelectorAll(".row")) e.style.transition = "none";
        return {{
            seen: [...d.querySelectorAll(".row.seen")].map((e) => e.dataset.row),
            paired: [...d.querySelectorAll(".row.paired")].map((e) => e.dataset.row),
            dim: [...d.querySelectorAll(".row")].filter((e) => opacity(e) < 0.5).map((e) => e.dataset.row),
            lines: [...d.querySelectorAll(".on")].map((e) => e.className + e.dataset.pair),
            pressed: d.querySelectorAll("[aria-pressed=true]").length,
        }};
    }})()"""
    nothing = {"seen": [], "paired": [], "dim": [], "lines": [], "pressed": 0}
    assert tab.evaluate(state) == nothing
    tab.click(f'{DOCUMENT} button[data-pair="2"]')
    second = tab.evaluate(state)
    assert (second["seen"], second["paired"], second["dim"]) == (["1", "2", "3"], ["4"], ["5"])
    assert second["lines"] == ["rail on2", "elbow on2"]
    tab.click(f'{DOCUMENT} button[data-pair="1"]')
    first = tab.evaluate(state)
    assert (first["seen"], first["paired"], first["dim"]) == (["1"], ["2"], ["3", "4", "5"])
    assert first["pressed"] == 1
    tab.click(f'{DOCUMENT} button[data-pair="1"]')
    assert tab.evaluate(state) == nothing


def test_lines_join_a_pair(tab):
    """A pair's line runs from the top of its document to its image."""

    def of(selector: str) -> list[float]:
        find = f"document.querySelector({DOCUMENT + ' ' + selector!r}).getBoundingClientRect()"
        return tab.evaluate(f"(({{left, top, right, bottom}}) => [left, top, right, bottom])({find})")

    flow, rail, elbow = of(".flow"), of('.rail[data-pair="2"]'), of('.elbow[data-pair="2"]')
    image = of('.row[data-row="4"]')
    assert abs(rail[1] - flow[1]) < 1
    assert abs(rail[3] - elbow[1]) < 1
    assert image[1] < elbow[3] < image[3]
    assert 0 <= elbow[2] - image[0] + 1 < 3


def test_tabs(tab):
    shown = "['documents', 'health'].map((id) => document.getElementById(id).checkVisibility())"
    assert tab.evaluate(shown) == [True, False]
    tab.click('label[for="tab-health"]')
    assert tab.evaluate(shown) == [False, True]
    tab.click('label[for="tab-documents"]')


def test_nothing_is_wider_than_a_phone(tab):
    tab.command(
        "Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False
    )
    for name in ("documents", "health"):
        tab.click(f'label[for="tab-{name}"]')
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.command("Emulation.clearDeviceMetricsOverride")
