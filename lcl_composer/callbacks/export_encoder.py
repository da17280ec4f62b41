"""Export the encoder when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.callbacks.unwrap import lcl_model
from lcl_composer.export import export_encoder

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig


class ExportEncoder(Callback):
    """Write the trained encoder and pooler to a folder, see :func:`lcl_composer.export.export_encoder`.

    Args:
        folder: Where to, ``runs/NAME/encoder``.
        config: The run's config.
    """

    def __init__(self, folder: Path, config: RunConfig):
        self.folder, self.config = folder, config

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write (rank 0)."""
        if dist.get_global_rank() == 0:
            export_encoder(lcl_model(state), self.config, self.folder)
