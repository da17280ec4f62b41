"""Restore the random state after a mid-epoch resume, which Composer leaves out for streaming data."""

from __future__ import annotations

from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility


class ExactResume(Callback):
    """Load the checkpoint's random state before the first batch after a resume.

    Composer restores it while it spins its loader forward; a data set that resumes itself is not spun, and
    dropout would differ from the uninterrupted run (docs/composer.md). ``trainer`` is set once it is built.
    """

    trainer: Trainer | None = None

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Restore once; iterating the loader must not draw from the restored state."""
        if self.trainer is not None and self.trainer._rng_state is not None:
            reproducibility.load_rng_state(self.trainer._rng_state)
            self.trainer._rng_state = None
