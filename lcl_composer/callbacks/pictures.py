"""Pictures and plots of a run: a file in its folder, and every logger that shows pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from PIL import Image

from lcl_composer.callbacks.run_record import folder_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show(state: State, logger: Logger, name: str, picture: np.ndarray | Figure) -> None:
    """Write ``runs/NAME/<name>/ba000500.png`` and hand the picture to the loggers; rank 0 only.

    TensorBoard, Weights & Biases and MLflow show it under ``name`` at the current batch.

    Args:
        state: Of the run.
        logger: The run's.
        name: Folder in the run folder, and name in the loggers.
        picture: uint8 [H, W, 3], or a matplotlib figure.
    """
    if dist.get_global_rank() != 0:
        return
    pixels = picture if isinstance(picture, np.ndarray) else figure_pixels(picture)
    folder = folder_of(state) / name
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"ba{int(state.timestamp.batch):06d}.png")
    log_picture(logger, name, pixels)


def log_picture(logger: Logger, name: str, pixels: np.ndarray) -> None:
    """Hand pixels (uint8 [H, W, 3]) to the loggers that show pictures, at the current batch."""
    logger.log_images(pixels, name=name, channels_last=True, use_table=False)


def figure_pixels(figure: Figure) -> np.ndarray:
    """A matplotlib figure as uint8 [H, W, 3], drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
