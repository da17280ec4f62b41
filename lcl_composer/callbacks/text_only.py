"""Tell once that a batch gives the contrastive loss nothing."""

from __future__ import annotations

import logging

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.callbacks.unwrap import lcl_model

log = logging.getLogger(__name__)


class TextOnly(Callback):
    """Warn at the first batch of a rank in which no image has text before it: L_con is 0 there.

    Training goes on. Text-only data are a mistake more often than a choice, and nothing else would say so.
    """

    def __init__(self) -> None:
        self.told = False

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Look at the batch while it is still on the CPU."""
        if self.told or int(state.batch["totals"][2]) or not lcl_model(state).contrastive_weight:
            return
        self.told = True
        log.warning(
            "batch %d on rank %d (document %r and others) has no image with text before it: L_con is 0 "
            "there. If there are images, look at data.min_context_tokens and data.image_first_probability; "
            "if not, set loss.contrastive_weight to 0. Further ones are not told",
            int(state.timestamp.batch),
            dist.get_global_rank(),
            state.batch["ids"][0],
        )
