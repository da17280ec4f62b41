"""The losses of LCL and their maths over ranks. Imports torch, triton and ``lcl_composer.kernels`` only."""

from __future__ import annotations

from lcl_composer.losses.contrastive import contrastive_loss
from lcl_composer.losses.generation import generation_loss
from lcl_composer.losses.several import several_contrastive_loss
from lcl_composer.losses.sigmoid import sigmoid_contrastive_loss

__all__ = ["contrastive_loss", "generation_loss", "several_contrastive_loss", "sigmoid_contrastive_loss"]
