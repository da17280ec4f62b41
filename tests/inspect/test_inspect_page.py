"""What the page says, read off its HTML."""

from __future__ import annotations

import json

import pytest
from PIL import Image as PILImage
from selectolax.lexbor import LexborHTMLParser

from lcl_composer.convert.engine import convert
from lcl_composer.convert.table import Table
from lcl_composer.inspect.inspect_page import render, scope
from lcl_composer.inspect.survey import survey
from tests.inspect.conftest import HOSTILE, RULES, documents, encoded, viewer

NAMES = [document.id for document in documents()]


def tokens(node, wanted) -> int:
    """Tokens of a node's pieces: text runs and is predicted where its piece says nothing else."""
    total = 0
    for piece in node.css("i"):
        plain = not piece.attributes.get("class")
        kinds = (piece.attributes.get("class") or "predicted run").split()
        if wanted in kinds or wanted == "all" or (wanted == "text" and (plain or "mark" not in kinds)):
            total += int(piece.attributes.get("data-n") or 1)
    return total


def article(tree, number):
    return tree.css("article")[number]


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_tokens_of_each_kind_are_those_of_the_layout(tree, number):
    view = viewer().view(documents()[number])
    node, layout = article(tree, number), view.layout
    flow = node.css_first(".flow")
    assert tokens(flow, "run") == len(layout.tokens)
    assert tokens(flow, "predicted") == int((layout.targets >= 0).sum())
    assert sum(tokens(row, "all") for row in node.css(".text.ignored")) == layout.cut_tokens
    before = layout.tokens[: max(0, int(layout.anchors.max(initial=-1)))]
    special = viewer().tokenizer.start_of_text
    assert sum(tokens(row, "text") for row in flow.css(".context")) == int((before < special).sum())
    assert sum(tokens(row, "all") for row in flow.css(".image")) == (2 + RULES.tokens_per_image) * len(
        flow.css(".image")
    )


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_every_image_stands_once_and_each_pair_has_a_number_and_a_line(tree, number):
    view = viewer().view(documents()[number])
    node = article(tree, number)
    assert len(node.css("figure.image")) == len(view.document.images)
    pairs = [str(row.pair) for row in view.images if row.pair]
    assert [b.attributes["data-pair"] for b in node.css("button.badge")] == pairs
    assert [b.attributes["data-pair"] for b in node.css(".elbow")] == pairs
    assert [b.attributes["data-pair"] for b in node.css(".rail")] == pairs
    assert len(node.css("figure.cut")) == view.layout.cut_images


def test_reasons_are_on_the_page(tree):
    assert "not in a pair: opens the document" in article(tree, 2).text(separator="")
    assert "no text follows" in article(tree, 1).text()
    assert "Training skips this document: broken, image 0: cannot decode" in article(tree, 8).text(
        separator=""
    )
    assert "Training skips this document: textless: nothing to learn" in article(tree, 6).text(separator="")
    assert len(tree.css(".problem")) == 2


def test_hostile_text_is_escaped(page, tree):
    html = page.read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert "&lt;script&gt;document.title" in html
    assert tree.css("img[onerror]") == []
    shown = article(tree, 7).css_first(".flow").text(separator="")
    assert "<script>" in shown.replace(" ", "")
    assert "{{7*7}}" in shown.replace(" ", "")
    assert HOSTILE in article(tree, 7).css_first("h2").text()


def test_nothing_is_loaded_from_elsewhere(tree):
    sources = [node.attributes["src"] for node in tree.css("[src]")]
    assert len(sources) > 10
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert [node.attributes["href"] for node in tree.css("[href]")] == ["data:,"]
    assert "url(" not in tree.css_first("style").text()


def test_health_says_what_it_is_of(tree, found):
    text = tree.css_first("#health").text(separator=" ")
    assert "Computed on all 10 documents." in text
    assert "Not recorded: no conversion.json beside the shards." in text
    assert "20% of the documents would be skipped in training" in text
    bars = tree.css_first("#health figure").css("g title")
    assert [bar.text() for bar in bars] == ["0 images: 1", "1 images: 7", "2 images: 2"]


def test_duplicates_name_their_documents(tree):
    red, blue = tree.css(".duplicates > li")
    assert "5 times in 5 documents" in " ".join(red.text().split())
    assert red.css_first(".tag").text() == "equal bytes"
    assert [li.text() for li in blue.css(".names li")] == ["cut", "larger", "leading", "plain"]
    assert blue.css_first(".tag").text() == "2 encodings"


def test_a_sample_says_so(data_set):
    found = survey(data_set, viewer(), 32, count=4, show=2, progress=False)
    assert scope(found) == "Computed on 4 of 10 documents, evenly spread."
    assert [shown.view.document.id for shown in found.shown] == ["cut", "broken"]
    assert render(found) == render(survey(data_set, viewer(), 32, count=4, show=2, progress=False))


def test_conversion_and_similarities_stand_beside_the_layout(tmp_path):
    (tmp_path / "set").mkdir()
    rows = []
    for number in range(10):
        (tmp_path / f"set/{number}.png").write_bytes(encoded("red" if number % 2 else "navy", side=80))
        similarity = None if number == 9 else 0.2 + number / 50
        rows.append({"image": f"{number}.png", "caption": f"a number {number}", "similarity": similarity})
    (tmp_path / "set/all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert(
        Table(tmp_path / "set/all.jsonl", min_similarity=0.24),
        str(tmp_path / "out"),
        workers=1,
        progress=False,
    )
    found = survey(tmp_path / "out", viewer(), 32, count=100, show=1, progress=False)
    tree = LexborHTMLParser(render(found))
    figure = next(node for node in tree.css("figure.card") if "Similarity" in node.text())
    bars = [title.text() for title in figure.css("g title")]
    assert sum(int(bar.split(": ")[1]) for bar in bars) == 9
    assert bars[0] == "0.20 similarity: 1"
    assert "from 0.20 to 0.36" in " ".join(figure.text().split())
    dropped = next(node for node in tree.css(".card") if "Documents dropped" in node.text())
    assert "similarity under 0.24, or none" in dropped.text()
    assert dropped.css_first("b").text() == "30.0%"


def test_thumbnails_are_small(found):
    for shown in found.shown:
        for picture in shown.pictures:
            assert isinstance(picture, str) or len(picture.thumbnail) < 20_000
    assert PILImage.MAX_IMAGE_PIXELS  # Pillow's own guard stays on
