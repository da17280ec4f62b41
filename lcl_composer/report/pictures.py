"""Attention maps and retrieval results of runs, with their images inlined."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from lcl_composer.picture_formats import FORMATS, MAX_PIXELS
from lcl_composer.report.run import Run
from lcl_composer.report.variants import Variant

#: Attention maps a variant on the page: the first, the last, and some between.
MAPS = 4

_WIDEST = 1000


@dataclass(frozen=True)
class Map:
    """An attention map.

    Attributes:
        label: When it was drawn, such as ``batch 500``.
        image: Data URI.
    """

    label: str
    image: str


@dataclass(frozen=True)
class Found:
    """A result: an image (data URI) or a text, its cosine, and whether it is the right one."""

    image: str
    text: str
    cosine: float | None
    right: bool


@dataclass(frozen=True)
class Answer:
    """What a variant found for a query; ``rank`` is the right one's place among ``candidates``."""

    variant: int
    rank: int
    candidates: int
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Query:
    """A held-out image or text and each variant's answer."""

    document: str
    image: str
    text: str
    answers: tuple[Answer, ...]


def attention_maps(variant: Variant) -> tuple[str, list[Map]]:
    """The name of the variant's first run with attention maps, and a few of them in order of time."""
    for run in variant.runs:
        paths = run.attention_maps
        last = len(paths) - 1
        chosen = (
            [paths[i] for i in sorted({round(last * j / (MAPS - 1)) for j in range(MAPS)})] if paths else []
        )
        maps = [Map(_when(path), image) for path in chosen if (image := inline(path, _WIDEST))]
        if maps:
            return run.name, maps
    return "", []


def gallery(variants: Sequence[Variant], way: str) -> list[Query]:
    """The queries of one direction, in order; runs on the same documents answer the same ones.

    Args:
        variants: The columns of the page; of each the first run with a gallery answers.
        way: ``text_to_image`` or ``image_to_text``.
    """
    queries: dict[tuple[str, int], dict[str, Any]] = {}
    for number, variant in enumerate(variants):
        run = next((run for run in variant.measured if run.gallery), None)
        for item, image, answer in _answers(run, way, number) if run else []:
            key = (item["document"], item["image"])
            query = queries.setdefault(key, {"image": image, "text": item["text"], "answers": []})
            query["answers"].append(answer)
    return [
        Query(f"{document}, image {number + 1}", q["image"], q["text"], tuple(q["answers"]))
        for (document, number), q in queries.items()
    ]


def _answers(run: Run, way: str, variant: int) -> list[tuple[dict[str, Any], str, Answer]]:
    """Item, image and answer of each query; none, with a note, where ``gallery.json`` is damaged."""
    try:
        return _parsed(run, way, variant)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        run.notes.append(f"gallery.json is damaged: its part {way} is left out")
        return []


def _parsed(run: Run, way: str, variant: int) -> list[tuple[dict[str, Any], str, Answer]]:
    items, answers = run.gallery["items"], []
    images = {name: _thumbnail(run, item["file"]) for name, item in items.items()}
    for query in run.gallery[way]:
        found = tuple(
            Found(images[str(i)], items[str(i)]["text"], None if c is None else float(c), i == query["item"])
            for i, c in query["found"]
        )
        name = str(query["item"])
        answer = Answer(variant, int(query["rank"]), int(run.gallery["candidates"]), found)
        item = {
            "document": str(items[name]["document"]),
            "image": int(items[name]["image"]),
            "text": items[name]["text"],
        }
        answers.append((item, images[name], answer))
    return answers


def _thumbnail(run: Run, name: str) -> str:
    """A picture of the gallery; nothing outside the run folder is read."""
    path = (run.folder / name).resolve()
    return inline(path, _WIDEST) if path.is_relative_to(run.folder.resolve()) else ""


def inline(path: Path, widest: int) -> str:
    """An image file as a data URI, "" where it cannot be read: PNG grids become WebP, a tenth of the size."""
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return ""
            if image.format == "JPEG":
                return _uri("jpeg", data)
            image = image.convert("RGB")
            image.thumbnail((widest, 1 << 16))
            buffer = BytesIO()
            image.save(buffer, "WEBP", quality=88)
    except Exception:  # Pillow's decoders raise nearly anything on damaged bytes
        return ""
    return _uri("webp", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _when(path: Path) -> str:
    number = path.stem.removeprefix("ba")
    return f"batch {int(number):,}" if number.isdigit() else path.stem
