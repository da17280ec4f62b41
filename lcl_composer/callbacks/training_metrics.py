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

    Checkpoints keep how many images were encoded so far: those of the windows exactly, those of a window that
    has begun as if all ranks had as many.

    Args:
        window_size: Batches between two measurements of the throughput.
    """

    def __init__(self, window_size: int = 10):
        self.window_size = window_size
        self.images: list[int] = []
        self.started: float | None = None
        self.images_seen = 0

    def state_dict(self) -> dict[str, int]:
        """The images that were encoded so far."""
        return {"images_seen": self.images_seen + sum(self.images) * dist.get_world_size()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Count on; a checkpoint from before they were counted does not say how many there were."""
        self.images_seen = state.get("images_seen", 0)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the scale; at the end of a window, the throughput."""
        assert state.timestamp.total_wct is not None, "the trainer keeps the time"
        if (term := method_of(state).contrast_term) and term.contrast:
            logger.log_metrics({"loss/logit_scale": float(term.contrast.scale().detach())})
        now = state.timestamp.total_wct.total_seconds()
        if self.started is None:  # the first batch warms up: its time is no measure
            self.started = now
            self.images_seen += self._over_ranks(state, len(state.batch["pixel_values"]))
            return
        self.images.append(len(state.batch["pixel_values"]))
        if len(self.images) < self.window_size:
            return
        total = self._over_ranks(state, sum(self.images))
        logger.log_metrics({"throughput/images_per_sec": total / max(now - self.started, 1e-9)})
        self.images, self.started = [], now
        self.images_seen += total

    def _over_ranks(self, state: State, count: int) -> int:
        total = state.device.tensor_to_device(torch.tensor(count))
        dist.all_reduce(total)
        return int(total)
