"""Log how many samples were skipped as bad."""

from __future__ import annotations

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.data.loader import DocumentLoader


class BadSamples(Callback):
    """Log ``data/bad_samples``, the training samples that all ranks skipped since the start or resume.

    The loader names each in the log, and stops the run where ``data.max_bad_fraction`` is exceeded.
    """

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Log the count."""
        self._log(state, logger)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Log the count of a run that ends within an epoch."""
        self._log(state, logger)

    def _log(self, state: State, logger: Logger) -> None:
        loader = state.train_dataloader
        assert isinstance(loader, DocumentLoader), "build_loader makes the training loader"
        count = state.device.tensor_to_device(torch.tensor(loader.bad_samples))
        dist.all_reduce(count)
        logger.log_metrics({"data/bad_samples": int(count)})
