"""A small data set with one of everything, and its page."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw
from selectolax.lexbor import LexborHTMLParser

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.inspect.inspect_page import write_page
from lcl_composer.inspect.survey import Survey, survey
from lcl_composer.inspect.view import Viewer

RULES = LayoutRules(tokens_per_image=4, max_tokens=40)
_TOKENIZER = CLIPTokenizer()
HOSTILE = '<script>document.title = "taken"</script><img src=x onerror="document.title = 1">'


def encoded(colour: str, kind: str = "PNG", side: int = 60) -> bytes:
    """A disc on white."""
    image = PILImage.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse((side // 6, side // 4, side * 3 // 4, side * 4 // 5), fill=colour)
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


RED, BLUE = Image(encoded("red")), Image(encoded("blue"))


def documents() -> list[Document]:
    """Documents whose layout differs in all that the page tells apart."""
    long = Text("one two three four five six seven eight nine ten " * 4)
    return [
        Document(
            "plain", "a.html", (Text("a red disc"), RED, Text("was here"), BLUE, Text("and a blue one"))
        ),
        Document("trailing", "b.html", (Text("nothing after this"), RED)),
        Document("leading", "c.html", (BLUE, Text("nothing before that"))),
        Document("cut", "d.html", (Text("first"), RED, long, BLUE, Text("last"))),
        Document("pair", "e.html", (Image(encoded("green"), floats=True), long)),
        Document("imageless", "f.html", (Text("no image at all, caf\u00e9 \u732b \U0001f408"),)),
        Document("textless", "g.html", (RED,)),
        Document(
            f"h{HOSTILE}", f"h{HOSTILE}", (Text(f"before {HOSTILE} {{{{ 7 * 7 }}}}"), RED, Text("after"))
        ),
        Document("broken", "i.html", (Text("this is no image:"), Image(b"GIF89a..."), Text("indeed"))),
        Document("larger", "j.html", (Text("again"), Image(encoded("blue", side=120)), Text("in large"))),
    ]


def viewer(epoch: int = 0, rules: LayoutRules = RULES) -> Viewer:
    return Viewer(_TOKENIZER, rules, seed=17, epoch=epoch)


@pytest.fixture(scope="session")
def data_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect") / "set"
    with DocumentWriter(folder, size_limit=4096) as writer:
        for document in documents():
            writer.write(document)
    return folder


@pytest.fixture(scope="session")
def found(data_set) -> Survey:
    return survey(data_set, viewer(), 32, count=100, show=100, progress=False)


@pytest.fixture(scope="session")
def page(found, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "page.html"
    write_page(found, path)
    return path


@pytest.fixture(scope="session")
def tree(page) -> LexborHTMLParser:
    return LexborHTMLParser(page.read_text(encoding="utf-8"))
