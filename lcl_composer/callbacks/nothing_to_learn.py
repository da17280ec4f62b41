"""Tell once that a batch gives a loss nothing."""

from __future__ import annotations

import logging

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.methods.method import method_of

log = logging.getLogger(__name__)


class NothingToLearn(Callback):
    """Warn at the first batch of a rank in which a loss with a weight has nothing: it is 0 there.

    Training goes on. Data without images, or without text, are a mistake more often than a choice, and
    nothing else would say so.
    """

    def __init__(self) -> None:
        self.told = False

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Look at the batch while it is still on the CPU."""
        totals, terms = state.batch["totals"], method_of(state).terms
        empty = [name for name, term in terms.items() if term.weight and not int(totals[term.count])]
        if self.told or not empty:
            return
        self.told = True
        log.warning(
            "batch %d on rank %d (document %r and others) has no %s: the %s loss is 0 there. Look at "
            "data.min_context_tokens and data.image_first_probability, or set the weight of that loss to 0. "
            "Further ones are not told",
            int(state.timestamp.batch),
            dist.get_global_rank(),
            state.batch["ids"][0],
            terms[empty[0]].count.replace("_", " "),
            empty[0],
        )
