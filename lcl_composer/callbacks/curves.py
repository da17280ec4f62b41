"""Draw the training curves when training ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from PIL import Image

from lcl_composer.callbacks.pictures import log_picture
from lcl_composer.report.curves import plot_curves
from lcl_composer.report.metrics_file import read_metrics


class Curves(Callback):
    """Write ``plots/curves.png`` into the run folder at the end of training, from ``metrics.jsonl``.

    Loggers that show pictures get it as ``curves``. The file is read, not the memory of this process: the
    curves of a resumed run are whole.

    Args:
        folder: The run folder, ``runs/NAME``.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Draw and show (rank 0)."""
        if dist.get_global_rank() == 0:
            rows = read_metrics(self.folder / "metrics.jsonl")
            path = self.folder / "plots" / "curves.png"
            if plot_curves(rows, path, state.run_name):
                log_picture(logger, "curves", np.asarray(Image.open(path).convert("RGB")))
