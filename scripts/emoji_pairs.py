#!/usr/bin/env python
"""Pairs of the emoji of three npm packages: pictures by Google, Twitter and OpenMoji, captions from OpenMoji.

    python scripts/emoji_pairs.py data/real/packages data/real/emoji

writes ``OUT/GROUP/CODE-ARTIST.png`` and ``.txt``, for ``lcl convert captions``; the groups are classes for
``scripts/class_folders.py``. A caption is the emoji's name and keywords, alike for the three artists, so that
all pictures of an emoji are held out together. Variants in skin tone are left out: their captions differ in
the tone alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import resvg_py

from lcl_composer.data.folders import whole_folder
from lcl_composer.errors import DataError

SIDE = 64  # pixels, of Google's and Twitter's pictures
SHEETS = ("google", "twitter")


def read_emoji(packages: Path) -> dict[str, dict[str, Any]]:
    """Return OpenMoji's records by code, those of its own making and variants in skin tone left out."""
    records = json.loads((packages / "openmoji/data/openmoji.json").read_text())
    return {
        record["hexcode"].lower(): record
        for record in records
        if not record["skintone"] and not record["group"].startswith(("extras", "component"))
    }


def caption(record: dict[str, Any]) -> str:
    """Return the name and the keywords that say more, such as ``weary face: crying, fail, sad``."""
    said = record["annotation"].split()
    tags = dict.fromkeys(f"{record['tags']}, {record['openmoji_tags']}".split(", "))
    words = [tag for tag in tags if tag and tag not in said]
    return f"{record['annotation']}: {', '.join(words)}" if words else record["annotation"]


def code_of(picture: str) -> str:
    """Return the code in a file's name as OpenMoji writes it: joined emoji keep their variation selectors."""
    code = picture.removesuffix(".png")
    return code if "-200d" in code else code.removesuffix("-fe0f")


def write_pairs(packages: Path, out: Path) -> dict[str, int]:
    """Write the pairs of all three artists; return their number by artist."""
    emoji = read_emoji(packages)
    counts = dict.fromkeys((*SHEETS, "openmoji"), 0)

    def place(code: str, artist: str) -> Path:
        counts[artist] += 1
        stem = out / emoji[code]["group"] / f"{code}-{artist}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".txt").write_text(caption(emoji[code]) + "\n")
        return stem.with_suffix(".png")

    for artist in SHEETS:
        for picture in sorted((packages / f"emoji-datasource-{artist}/img/{artist}/64").glob("*.png")):
            if (code := code_of(picture.name)) in emoji:
                shutil.copyfile(picture, place(code, artist))
    for code in emoji:
        drawing = packages / f"openmoji/color/svg/{code.upper()}.svg"
        place(code, "openmoji").write_bytes(resvg_py.svg_to_bytes(svg_path=str(drawing), width=SIDE))
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("packages", type=Path, help="where scripts/fetch_real.sh put them")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        with whole_folder(arguments.out) as folder:
            numbers = write_pairs(arguments.packages, folder)
    except DataError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.out}: " + ", ".join(f"{number} by {artist}" for artist, number in numbers.items()))
