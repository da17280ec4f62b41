"""Fused losses: one op a file, its plain-PyTorch twin beside it. Imports torch and triton only."""

from __future__ import annotations

from lcl_composer.kernels.backend import Backend, resolve_backend
from lcl_composer.kernels.info_nce import info_nce
from lcl_composer.kernels.linear_cross_entropy import linear_cross_entropy
from lcl_composer.kernels.sigmoid import sigmoid_loss

__all__ = ["Backend", "info_nce", "linear_cross_entropy", "resolve_backend", "sigmoid_loss"]
