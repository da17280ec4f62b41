"""The gallery of a run as one picture, for loggers: what it finds for a few texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lcl_composer.json_data import load_json
from lcl_composer.picture_formats import FORMATS

_TILE, _FRAME, _GAP = 112, 4, 12
_RIGHT, _WRONG, _ASKED = (40, 150, 60), (200, 200, 200), (30, 90, 170)


def gallery_picture(folder: Path) -> np.ndarray | None:
    """Draw ``gallery.json`` of a run folder: a row a text that was searched for.

    First stands the image that the text was written beside, then the images that were found, the nearest
    first, the right one framed in green.

    Args:
        folder: The run folder.

    Returns:
        uint8 [H, W, 3]; None where there is no gallery.
    """
    try:
        gallery = load_json((folder / "gallery.json").read_text(encoding="utf-8"))
        rows = [_row(folder, gallery["items"], query) for query in gallery["text_to_image"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    widest = max((row.shape[1] for row in rows), default=0)
    padded = [np.pad(r, ((0, 0), (0, widest - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(padded) if padded else None


def _row(folder: Path, items: dict[str, Any], query: dict[str, Any]) -> np.ndarray:
    asked = query["item"]
    tiles = [_tile(folder / items[str(asked)]["file"], _ASKED)]
    tiles.append(np.full((_TILE, _GAP, 3), 255, np.uint8))
    tiles += [
        _tile(folder / items[str(i)]["file"], _RIGHT if i == asked else _WRONG) for i, _ in query["found"]
    ]
    return np.concatenate(tiles, axis=1)


def _tile(file: Path, colour: tuple[int, int, int]) -> np.ndarray:
    inner = _TILE - 2 * _FRAME
    with Image.open(file, formats=FORMATS) as image:
        fitted = ImageOps.pad(image.convert("RGB"), (inner, inner), color=(255, 255, 255))
    return np.asarray(ImageOps.expand(fitted, _FRAME, colour))
