from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lcl_composer.report.gallery_picture import _FRAME, _GAP, _RIGHT, _TILE, _WRONG, gallery_picture
from tests.report.run_folders import write_run


def test_a_row_a_text_with_the_right_image_in_green(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", pictures=True)
    gallery = json.loads((folder / "gallery.json").read_text())
    queries = gallery["text_to_image"]
    pixels = gallery_picture(folder)
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert pixels.shape == (_TILE * 2, _TILE * 4 + _GAP, 3)
    assert (pixels[_TILE:, -_TILE:] == 255).all(), "the second one found two"
    for row, query in enumerate(queries):
        for place, (item, _) in enumerate(query["found"]):
            corner = pixels[row * _TILE, _TILE * (1 + place) + _GAP]
            assert tuple(corner) == (_RIGHT if item == query["item"] else _WRONG)
    middle = (_FRAME + _TILE) // 2
    greens = [int(pixels[middle, _TILE * (1 + place) + _GAP + middle, 1]) for place in range(3)]
    assert greens == pytest.approx([0, 80, 160], abs=4), "the images in the order of their cosines"


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", '{"items": {}, "text_to_image": [{"item": 1}]}'])
def test_without_a_gallery_there_is_none(tmp_path: Path, text: str) -> None:
    assert gallery_picture(tmp_path) is None
    (tmp_path / "gallery.json").write_text(text)
    assert gallery_picture(tmp_path) is None
