"""What a report, an inspection or a message shows of a stranger's files is text, wherever it stands."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markupsafe import Markup
from PIL import EpsImagePlugin
from rich.console import Console
from selectolax.lexbor import LexborHTMLParser

from lcl_composer.convert.report import ConversionReport
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import DataError, LCLError, printable
from lcl_composer.evaluation.outcomes import outcomes_file, read_outcomes
from lcl_composer.inspect.survey import split_limits
from lcl_composer.report.confusions import matrix
from lcl_composer.report.pictures import inline
from lcl_composer.report.report_page import embedded, policy, render
from lcl_composer.report.run import read_runs
from lcl_composer.report.transfer_page import render as render_transfer
from tests.data.loaders import loader_of
from tests.report.run_folders import write_run

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)><a href="javascript:alert(1)">{{ 7 * 7 }}'


def hostile(value: Any) -> Any:
    """A value with every string in it replaced, names of keys too where they are free."""
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return f"{value}{EVIL}" if isinstance(value, str) else value


def is_clean(text: str, scripts: int) -> None:
    """No element and no attribute came out of data; scripts are the page's own."""
    page = LexborHTMLParser(text)
    nodes = page.css("*")
    assert len(page.css("script")) == scripts
    assert not [node for node in nodes if any((name or "").startswith("on") for name in node.attributes)]
    links = [node.attributes.get("href") or "#" for node in page.css("a")]
    assert all(link.startswith("#") for link in links)
    sources = [node.attributes.get("src") or "" for node in page.css("img")]
    assert all(source == "" or source.startswith("data:image/") for source in sources)
    assert "{{ 7 * 7 }}" in text, "the hostile text is there, as text"
    assert "49" not in page.css_first("title").text()


def test_a_report_of_hostile_runs(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, name, pictures=True, lr=i + 1) for i, name in enumerate("ab")]
    for folder in folders:
        for name in ("environment.json", "gallery.json", "summary.json"):
            path = folder / name
            content = hostile(json.loads(path.read_text()))
            path.write_text(json.dumps({**content, f"key {EVIL}": EVIL}))
        settings = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(settings + f"note: {json.dumps(EVIL + folder.name)}\n")
        with (folder / "metrics.jsonl").open("a") as file:
            for step in (1, 2):
                file.write(json.dumps({"step": step, f"loss/train/{EVIL}": step, EVIL: EVIL}) + "\n")
    is_clean(render(read_runs(folders), "0"), scripts=2)


def test_the_policy_lets_the_pages_own_script_run_and_no_other(tmp_path: Path) -> None:
    text = render(read_runs([write_run(tmp_path, "a")]), "0")
    page = LexborHTMLParser(text)
    given = page.css_first("meta[http-equiv=Content-Security-Policy]").attributes["content"] or ""
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in given
    assert "default-src 'none'" in given
    assert "script-src 'none'" in policy()


def test_a_page_of_transfer(tmp_path: Path) -> None:
    failure = {"task": EVIL, "encoder": EVIL, "reason": EVIL}
    results = {"encoders": [{"label": EVIL}], "created": EVIL, "failures": [failure]}
    text = render_transfer([], results, EVIL)
    is_clean(text, scripts=0)
    assert "script-src &#39;none&#39;" in text


NUMBERS = [
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "9" * 5000,
    "9" * 400,
    "true",
    '"x"',
    "[1]",
    "{}",
    "null",
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:6])
@pytest.mark.parametrize("key", ["loss/train/total", "seconds", "sample", "epoch", "x"])
def test_numbers_that_are_none(tmp_path: Path, number: str, key: str) -> None:
    folder = write_run(tmp_path, "a", batches=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, "{key}": {number}}}\n' for step in (4, 5))
    data = LexborHTMLParser(render(read_runs([folder]), "0")).css_first("#data").text()
    json.loads(data, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


@pytest.mark.parametrize("step", ["true", "1e400", '"1"', "-1", "9" * 400, "[]"], ids=lambda text: text[:5])
def test_steps_that_are_none(tmp_path: Path, step: str) -> None:
    folder = write_run(tmp_path, "a", batches=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {step}, "loss/train/total": 1}}\n')
    assert render(read_runs([folder]), "0")


@pytest.mark.parametrize(
    "found", ['"[/b]"', "[1]", "3", '{"top1": "x"}', f'{{"top1": {"9" * 400}}}'], ids=lambda text: text[:12]
)
@pytest.mark.parametrize("part", ["zero_shot", "probe", "retrieval"])
def test_measurements_that_are_none(tmp_path: Path, part: str, found: str) -> None:
    folder = write_run(tmp_path, "a", batches=3, evaluation={part: {}})
    summary = json.loads((folder / "summary.json").read_text())
    text = json.dumps({**summary, part: "HERE"}).replace('"HERE"', found)
    (folder / "summary.json").write_text(text)
    assert "<html" in render(read_runs([folder]), "0")
    config = (folder / "config.yaml").read_text().partition("evaluation:")[0]
    (folder / "config.yaml").write_text(f"{config}\nevaluation: {found if found[0] != '{' else 'x'}\n")
    assert "<html" in render(read_runs([folder]), "0")


FILES = ["config.yaml", "environment.json", "summary.json", "gallery.json", "metrics.jsonl"]
CONTENTS = ["[" * 100_000, '{"a": ' * 5000, "3", '"x"', "[]", "{}", '{"step": 1}', "\xff\xfe", "", "\0"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_damaged_files_of_a_run(tmp_path: Path, name: str, content: str) -> None:
    folder = write_run(tmp_path, "a", batches=3, pictures=True)
    (folder / name).write_text(content, encoding="latin-1")
    assert "<html" in render(read_runs([folder]), "0")


def test_other_files_that_are_bombs_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "conversion.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not the report of a conversion"):
        split_limits(tmp_path)
    outcomes_file(tmp_path, "x").parent.mkdir(parents=True, exist_ok=True)
    outcomes_file(tmp_path, "x").write_text("[" * 100_000)
    with pytest.raises(DataError, match="damaged"):
        read_outcomes(tmp_path, "x")


def test_pictures_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is run on one, and a bomb is left out."""

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript is run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert inline(tmp_path / "x.png", 100) == ""
    for side in (30_000, 10_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b""))
        )
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
        assert inline(tmp_path / "x.png", 100) == ""


def test_json_in_a_script_element_cannot_close_it() -> None:
    text = embedded({"x": "</script><!--<script>&"})
    assert isinstance(text, Markup)
    assert not re.search("[<>&]", text)
    assert json.loads(text) == {"x": "</script><!--<script>&"}


def test_names_of_classes_in_a_picture() -> None:
    outcomes: Any = SimpleNamespace(classes=["</svg>" + EVIL, "b"], labels=[0, 1], predicted=[1, 1])
    drawn = LexborHTMLParser(str(matrix(outcomes)))
    assert drawn.css("script, img, a") == []
    assert EVIL in drawn.css_first("title").text()


def test_messages_do_not_steer_the_terminal() -> None:
    name = "a\x1b[2J\x1b]0;title\x07b\x9b31m\u202egnp.exe\n\tc"
    for error in (LCLError(name), DataError(f"document {name}: bad")):
        text = str(error)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert "\n\tc" in text
    assert printable("naïve – 漢字 ✓ \u00a0") == "naïve – 漢字 ✓ \u00a0"


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in JSON, of lists the first alone."""
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, item in inner:
        yield (*at, key)
        yield from leaves(item, (*at, key))


ODD: list[Any] = [[], {}, None, "x", math.inf]


@pytest.mark.parametrize("name", ["environment.json", "summary.json", "gallery.json"])
def test_values_of_another_kind(tmp_path: Path, name: str) -> None:
    """One at a time, each place of the file gets what nobody expects there."""
    folder = write_run(tmp_path, "a", batches=1, pictures=True)
    content = json.loads((folder / name).read_text())
    for number, at in enumerate(leaves(content)):
        changed = place = json.loads(json.dumps(content))
        for key in at[:-1]:
            place = place[key]
        place[at[-1]] = ODD[number % len(ODD)]
        (folder / name).write_text(json.dumps(changed))
        assert "<html" in render(read_runs([folder]), "0"), (at, ODD[number % len(ODD)])


def test_tables_and_logs_do_not_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Reasons of a conversion name suffixes of a tar; a bad sample names its document and its source."""
    report = ConversionReport("img2dataset", "a\x1b[2Jb", {})
    report.dropped["of a format not read (.\x1b]0;x\x07)"] = 1
    report.passed_over["\x9b31m in a tar"] = 1
    Console(width=200).print(report.table())
    document = Document("a\x1b[2J", "b\x1b]0;x\x07", (Text("1"), Image(b"x"), Text("2")))
    with DocumentWriter(tmp_path / "set") as writer:
        for _ in range(4):
            writer.write(document)
    made = loader_of(local=str(tmp_path / "set"), remote=None, batch_size=4, max_bad_fraction=1.0).dataloader
    assert len(list(made)) == 1
    for shown in (capsys.readouterr().out, caplog.text):
        assert shown
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
