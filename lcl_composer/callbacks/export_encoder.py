"""Export the encoder when training ends, and at each checkpoint where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist

from lcl_composer.callbacks.averaged import averaged
from lcl_composer.export import export_encoder
from lcl_composer.methods.method import Method, method_of
from lcl_composer.methods.whole import whole
from lcl_composer.models.weights import digest_of_weights

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig


class ExportEncoder(Callback):
    """Write the trained encoder and pooler to a folder, see :func:`lcl_composer.export.export_encoder`.

    An encoder that came from elsewhere and left no other than it came is not written again.

    Args:
        folder: Where to, ``runs/NAME/encoder``.
        config: The run's config.
    """

    def __init__(self, folder: Path, config: RunConfig):
        self.folder, self.config = folder, config

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write (rank 0)."""
        self.export(state, self.folder)

    def export(self, state: State, folder: Path) -> None:
        """Write the encoder as it is now to a folder (rank 0); all ranks call it together."""
        with whole(state):
            method = method_of(state)
            if dist.get_global_rank() == 0 and not is_as_it_came(method):
                export_encoder(method, self.config, folder)


def is_as_it_came(method: Method) -> bool:
    """Whether the encoder has the very weights with which it came, and the method pools nothing."""
    encoder = method.encoder
    came_with = encoder.weights and "pooler" not in method.parts
    return bool(came_with) and digest_of_weights(encoder.backbone) == encoder.weights


class ExportAtCheckpoints(Callback):
    """Export the encoder at each checkpoint as well, to ``runs/NAME/encoder-ba1000``, and keep them all.

    ``runs/NAME/encoder`` is the last one, written when training ends, with or without this. With EMA, and
    ``export`` on there, the average is exported.
    """

    def fit_start(self, state: State, logger: Logger) -> None:
        """Find the run's own export, which knows folder and config."""
        self._last = next(c for c in state.callbacks if isinstance(c, ExportEncoder))
        self._due = create_interval_scheduler(self._last.config.save_interval)
        self._exported_at = -1

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write if a checkpoint is due."""
        self._export_if_due(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write if a checkpoint is due."""
        self._export_if_due(state, Event.EPOCH_CHECKPOINT)

    def _export_if_due(self, state: State, event: Event) -> None:
        batch = int(state.timestamp.batch)
        if not self._due(state, event) or batch == self._exported_at:
            return
        self._exported_at = batch
        folder = self._last.folder
        with averaged(state, "export"):
            self._last.export(state, folder.with_name(f"{folder.name}-ba{batch}"))
