"""Log what Composer does not: the logit scale and images per second."""

from __future__ import annotations

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.methods.method import method_of


class TrainingMetrics(Callback):
    """Log ``loss/logit_scale`` each batch and ``throughput/images_per_sec`` over a window of batches.

    The scale, of a method that contrasts, is the factor on the cosines (1 / temperature, clamped), after the
    optimizer's step. Images are counted over all ranks; time spent in evaluations does not count. Documents
    and tokens per second come from Composer's ``speed_monitor`` as ``throughput/samples_per_sec`` and
    ``.../tokens_per_sec``.

    Args:
        window_size: Batches between two measurements of the throughput.
    """

    def __init__(self, window_size: int = 10):
        self.window_size = window_size
        self.images: list[int] = []
        self.started: float | None = None

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the scale; at the end of a window, the throughput."""
        assert state.timestamp.total_wct is not None, "the trainer keeps the time"
        if (term := method_of(state).contrast_term) and term.contrast:
            logger.log_metrics({"loss/logit_scale": float(term.contrast.scale())})
        now = state.timestamp.total_wct.total_seconds()
        if self.started is None:  # the first batch warms up: its time is no measure
            self.started = now
            return
        self.images.append(len(state.batch["pixel_values"]))
        if len(self.images) < self.window_size:
            return
        total = state.device.tensor_to_device(torch.tensor(sum(self.images)))
        dist.all_reduce(total)
        logger.log_metrics({"throughput/images_per_sec": float(total) / max(now - self.started, 1e-9)})
        self.images, self.started = [], now
