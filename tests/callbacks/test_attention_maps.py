from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from composer.loggers import LoggerDestination
from PIL import Image

from callbacks.attention_maps import AttentionMaps, draw_grid, overlay, to_display
from lcl_composer.callbacks.run_record import RunRecord
from lcl_composer.registry import callbacks
from tests.callbacks.training import make_trainer


class Gallery(LoggerDestination):
    def __init__(self) -> None:
        self.shown: list[tuple[str, int, tuple[int, ...]]] = []

    def log_images(self, images, name="Images", channels_last=False, step=None, *_) -> None:
        assert channels_last
        self.shown.append((name, step, images.shape))


def test_two_batches_write_png_grids_and_show_them(tmp_path: Path) -> None:
    gallery = Gallery()
    maps = callbacks.build({"name": "attention_maps", "every": "1ba", "images": 5})
    make_trainer([RunRecord(tmp_path, ""), maps], [gallery]).fit()
    files = sorted((tmp_path / "attention_maps").iterdir())
    assert [file.name for file in files] == ["ba000001.png", "ba000002.png"]
    # five rows; columns: image, mean of the heads, two heads; 16 pixels enlarged to 96, 4 between
    shape = (5 * 96 + 4 * 4, 4 * 96 + 3 * 4, 3)
    assert gallery.shown == [("attention_maps", 1, shape), ("attention_maps", 2, shape)]
    with Image.open(files[0]) as image:
        assert (image.height, image.width, 3) == shape


def test_runs_without_held_out_data(tmp_path: Path) -> None:
    make_trainer([RunRecord(tmp_path, ""), AttentionMaps("2ba", images=3)], held_out=False).fit()
    assert (tmp_path / "attention_maps/ba000002.png").exists()


def test_heat_lies_where_the_attention_is() -> None:
    weights = torch.full((16,), 0.01)
    weights[3] = 0.85  # first row, last column of 4 x 4 patches
    heat = overlay(np.zeros((32, 32, 3), np.uint8), weights).sum(-1)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert row < 8
    assert column >= 24


def test_attention_that_is_spread_evenly_stays_dim() -> None:
    black = np.zeros((32, 32, 3), np.uint8)
    peaked = torch.full((16,), 0.01).index_fill(0, torch.tensor(5), 0.85)
    even = overlay(black, torch.full((16,), 1 / 16))
    assert even.sum(-1).max() < 0.7 * overlay(black, peaked).sum(-1).max()


def test_images_larger_than_the_minimum_and_float_pixels() -> None:
    pixels = torch.randn(2, 3, 128, 128)
    assert to_display(pixels).dtype == np.uint8
    assert to_display(pixels).max() == 255
    grid = draw_grid(pixels, torch.full((2, 8, 16), 1 / 16))
    assert grid.shape == (2 * 128 + 4, 8 * 128 + 7 * 4, 3)  # image, mean, six of eight heads
