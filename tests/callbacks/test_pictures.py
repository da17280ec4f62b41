from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from composer.core import Callback
from composer.loggers import TensorboardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.attention_maps import AttentionMaps
from lcl_composer.callbacks.curves import Curves
from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.callbacks.pictures import figure_pixels, show
from lcl_composer.callbacks.run_record import RunRecord
from tests.callbacks.training import make_trainer

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


class Show(Callback):
    """A picture and a plot after each batch."""

    def batch_end(self, state, logger) -> None:
        show(state, logger, "red", RED)
        figure = Figure(figsize=(2, 1), dpi=50, facecolor=(0, 0, 1))
        show(state, logger, "plot", figure)


def test_pictures_and_plots_go_to_files_and_tensorboard(tmp_path: Path) -> None:
    callbacks = [RunRecord(tmp_path, ""), Show(), AttentionMaps("1ba", images=2), Curves(tmp_path)]
    loggers = [TensorboardLogger(str(tmp_path / "tensorboard")), JsonLinesLogger(tmp_path / "metrics.jsonl")]
    trainer = make_trainer(callbacks, loggers)
    trainer.fit()
    trainer.close()
    assert [f.name for f in sorted((tmp_path / "red").iterdir())] == ["ba000001.png", "ba000002.png"]
    with Image.open(tmp_path / "plot" / "ba000002.png") as image:
        assert image.size == (100, 50)
        assert image.getpixel((0, 0)) == (0, 0, 255)

    (folder,) = (f.parent for f in (tmp_path / "tensorboard").rglob("events.out*"))
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    assert {"red", "plot", "attention_maps", "curves"} <= set(events.Tags()["images"])
    shown = events.Images("red")
    assert [(event.step, event.width, event.height) for event in shown] == [(1, 6, 4), (2, 6, 4)]
    file = tmp_path / "shown.png"
    file.write_bytes(shown[0].encoded_image_string)
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), RED)


def test_a_figure_is_drawn_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    pixels = figure_pixels(Figure(figsize=(1, 1), dpi=20))
    assert (pixels.shape, pixels.dtype) == ((20, 20, 3), np.uint8)
    assert pixels.min() == 255
