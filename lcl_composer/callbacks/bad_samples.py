"""Log how many samples were skipped as bad."""

from __future__ import annotations

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.data.loader import DocumentLoader
from lcl_composer.errors import DataError


class BadSamples(Callback):
    """Log ``data/bad_samples``, the training samples that all ranks skipped since the start or resume.

    The loader names each in the log, and stops the run where ``data.max_bad_fraction`` is exceeded, which it
    judges by a hundred samples; a run that ends before has learnt nothing if all were bad, and says so.

    Raises:
        DataError: At the end of an epoch or of the run, if no sample of any rank was of use.
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
        counts = state.device.tensor_to_device(torch.tensor([loader.bad_samples, loader.seen]))
        dist.all_reduce(counts)
        bad, seen = counts.tolist()
        logger.log_metrics({"data/bad_samples": bad})
        if seen and bad == seen:
            raise DataError(f"data.train: all {seen} samples so far are bad, each named above")
