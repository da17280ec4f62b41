"""Pairs of the emoji packages, from small ones in their layout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from scripts.emoji_pairs import SHEETS, SIDE, read_emoji, write_pairs
from tests.data.conftest import png

DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">
<rect width="72" height="72" fill="red"/></svg>"""


def record(code: str, name: str, group: str, tags: str = "", more: str = "", tone: str = "") -> dict:
    return {
        "hexcode": code,
        "annotation": name,
        "group": group,
        "tags": tags,
        "openmoji_tags": more,
        "skintone": tone,
    }


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Four emoji of which two are taken, one of them joined, and the pictures of all."""
    root = tmp_path / "packages"
    records = [
        record("1F34E", "red apple", "food-drink", "fruit, mac, red", "food, fruit"),
        record("1F469-200D-2764-FE0F", "a pair", "people-body"),
        record("1F44B-1F3FB", "waving hand: light", "people-body", tone="1"),
        record("E000", "own drawing", "extras-openmoji"),
    ]
    drawings = root / "openmoji/color/svg"
    drawings.mkdir(parents=True)
    (root / "openmoji/data").mkdir()
    (root / "openmoji/data/openmoji.json").write_text(json.dumps(records))
    for entry in records:
        (drawings / f"{entry['hexcode']}.svg").write_text(DRAWING)
    for number, artist in enumerate(SHEETS):
        pictures = root / f"emoji-datasource-{artist}/img/{artist}/64"
        pictures.mkdir(parents=True)
        for name in ("1f34e-fe0f", "1f469-200d-2764-fe0f", "1f44b-1f3fb"):
            (pictures / f"{name}.png").write_bytes(png(number))
    return root


def test_every_artist_gives_a_picture_with_the_same_caption(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_pairs(packages, out) == {"google": 2, "twitter": 2, "openmoji": 2}
    captions = {path.read_text() for path in (out / "food-drink").glob("1f34e-*.txt")}
    assert captions == {"red apple: fruit, mac, food\n"}
    assert len(list(out.rglob("*.png"))) == len(list(out.rglob("*.txt"))) == 6
    assert (out / "food-drink/1f34e-twitter.png").read_bytes() == png(1)


def test_drawings_are_rendered(packages: Path, tmp_path: Path) -> None:
    write_pairs(packages, tmp_path / "out")
    data = (tmp_path / "out/people-body/1f469-200d-2764-fe0f-openmoji.png").read_bytes()
    picture = PILImage.open(io.BytesIO(data)).convert("RGB")
    assert picture.size == (SIDE, SIDE)
    assert picture.getpixel((5, 5)) == (255, 0, 0)


def test_what_differs_in_skin_tone_alone_is_left_out(packages: Path) -> None:
    assert set(read_emoji(packages)) == {"1f34e", "1f469-200d-2764-fe0f"}
