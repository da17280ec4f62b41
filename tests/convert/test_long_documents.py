"""Documents longer than the context, from the source to the health page."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.convert.engine import convert
from lcl_composer.convert.html import HTML
from lcl_composer.convert.obelics import Obelics
from lcl_composer.data.document import Text
from lcl_composer.data.interleave import LayoutRules, lay_out
from lcl_composer.data.tokenizer import BPETokenizer, CLIPTokenizer, train_bpe
from lcl_composer.errors import ConfigError
from tests.convert.samples import picture, read_all, run, shown
from tests.convert.test_obelics import row, write
from tests.data.layouts import rng

LIMITS = {"max_tokens": 64, "tokens_per_image": 9}


def page(sections: int) -> str:
    parts = [
        f"<h2>Part {i}</h2><p>{'some words here ' * 6}</p><p>Look:</p><img src='i{i % 3}.png'><p>Seen.</p>"
        for i in range(sections)
    ]
    return f"<body><h1>The book</h1>{''.join(parts)}</body>"


@pytest.fixture
def pages(tree):
    images = {f"i{i}.png": picture(colour=colour) for i, colour in enumerate(("red", "green", "blue"))}
    return tree({f"{n}.html": page(n) for n in (1, 7, 12, 30)} | images)


def parts_of(documents, name: str):
    return [document for key, document in documents.items() if key.split("#")[0] == name]


def test_a_long_page_becomes_documents_that_fit(pages, tmp_path):
    report, documents = run(HTML(pages, **LIMITS), tmp_path)
    rules = LayoutRules(LIMITS["tokens_per_image"], LIMITS["max_tokens"])
    layouts = [lay_out(document, CLIPTokenizer(), rules, rng()) for document in documents.values()]
    assert sum(layout.cut_tokens + layout.cut_images for layout in layouts) == 0
    assert sum(len(layout.images) for layout in layouts) == report.images.total == 50
    assert list(parts_of(documents, "1.html")) == [documents["1.html"]]
    seven = parts_of(documents, "7.html")
    assert [document.id for document in seven] == [f"7.html#{i}" for i in range(7)]
    assert {document.source for document in seven} == {"source/7.html"}
    assert shown(seven[1])[0].startswith("Part 1\n\nsome words")
    assert shown(seven[1])[1:] == [picture(colour="green"), "Seen."]


def test_the_report_counts_pages_and_what_they_became(pages, tmp_path):
    whole, _ = run(HTML(pages, **{**LIMITS, "max_tokens": 0}), tmp_path / "whole")
    report, documents = run(HTML(pages, **LIMITS), tmp_path)
    assert (whole.documents, whole.read, whole.split) == (4, 4, {})
    assert report.documents == len(documents) > 40
    assert report.read == 4
    assert (report.split["documents"], report.split["pieces"]) == (3, len(documents) - 1)
    assert (report.words.total, report.tokens.total) == (whole.words.total, whole.tokens.total)
    assert report.split["tokens repeated"] == 0
    images, text = report.reach_unsplit
    assert images == pytest.approx(4 / 50)  # one of each page
    assert 0.05 < text < 0.2


def test_headings_are_repeated_if_asked(pages, tmp_path):
    report, documents = run(HTML(pages, repeat_headings=True, max_tokens=30, tokens_per_image=9), tmp_path)
    texts = [shown(document)[0] for document in parts_of(documents, "7.html")]
    assert all(text.startswith("The book\n\nPart ") for text in texts)
    assert any("Part 3\n\nLook:" in text for text in texts)
    assert report.split["tokens repeated"] > 0


def test_all_of_a_page_is_held_out_or_none(tree, tmp_path):
    source = tree({f"{n}.html": page(6) for n in range(20)} | {f"i{i}.png": picture() for i in range(3)})
    convert(HTML(source, **LIMITS), str(tmp_path / "out"), held_out=0.4, progress=False, workers=1)
    train, held_out = (
        {name.split("#")[0] for name in read_all(tmp_path / "out" / split)} for split in ("train", "held_out")
    )
    assert train | held_out == {f"{n}.html" for n in range(20)}
    assert not train & held_out
    assert held_out


def test_the_tokens_are_those_of_the_tokenizer_named(pages, tmp_path):
    train_bpe(["some words here look seen the book part"], 280, tmp_path / "bpe.json")
    _, documents = run(HTML(pages, **LIMITS, tokenizer=str(tmp_path / "bpe.json")), tmp_path)
    rules = LayoutRules(LIMITS["tokens_per_image"], LIMITS["max_tokens"])
    tokenizer = BPETokenizer(tmp_path / "bpe.json")
    layouts = [lay_out(document, tokenizer, rules, rng()) for document in documents.values()]
    assert sum(layout.cut_tokens + layout.cut_images for layout in layouts) == 0
    assert len(parts_of(documents, "7.html")) > 7


def test_other_sources_split_if_asked(tmp_path):
    long = row("A b c.\n\n" * 30, "http://a.b/red.png", "D e f.\n\n" * 30)
    folder = write(tmp_path, [long])
    _, whole = run(Obelics(folder, images=tmp_path / "downloads"), tmp_path / "whole")
    assert list(whole) == ["train-0.parquet:0"]
    _, split = run(Obelics(folder, images=tmp_path / "downloads", **LIMITS), tmp_path)
    assert list(split) == [f"train-0.parquet:0#{i}" for i in range(len(split))]
    assert sum(s.text.count("f") for d in split.values() for s in d.segments if isinstance(s, Text)) == 30


@pytest.mark.parametrize("limits", [{"max_tokens": 40}, {"tokens_per_image": 0}, {"max_tokens": -1}])
def test_limits_that_hold_no_image_are_refused(tmp_path, limits):
    with pytest.raises(ConfigError, match="max_tokens >= "):
        HTML(tmp_path, **limits).check()


def inspected(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.output


def test_inspect_shows_what_reaches_a_loss_before_and_after(pages, tmp_path):
    run(HTML(pages, **LIMITS), tmp_path)
    output = inspected(tmp_path / "out")
    assert "max_tokens 64, tokens an image 9" in output
    inspected(tmp_path / "out", "--html", tmp_path / "page.html")
    for text in (output, (tmp_path / "page.html").read_text()):
        assert "0 do not; 8% would without splits" in text
        assert "of 64 tokens a document" in text
    shorter = inspected(tmp_path / "out", "--max-tokens", 24)
    assert "max_tokens 24," in shorter
    assert "100% of the images are cut" in shorter
    assert "of max_tokens is used" in inspected(tmp_path / "out", "--max-tokens", 512)
