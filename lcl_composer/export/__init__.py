"""Taking the encoder away: our own folder, and the formats of other libraries."""

from __future__ import annotations

from lcl_composer.export.encoder import export_encoder
from lcl_composer.export.run import export_run
from lcl_composer.models.exported import load_encoder, untrained_encoder

__all__ = ["export_encoder", "export_run", "load_encoder", "untrained_encoder"]
