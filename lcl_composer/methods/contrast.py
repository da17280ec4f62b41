"""What every method that contrasts shares: scale, bias, bounds, and the sides that get no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lcl_composer.losses import contrastive_loss, several_contrastive_loss, sigmoid_contrastive_loss
from lcl_composer.models.sharding import local

ContrastiveLoss = Literal["info_nce", "sigmoid"]

#: Least scale: a temperature of 1000 tells nothing apart.
LOGIT_SCALE_MIN = 1e-3
#: SigLIP starts its bias here (arXiv 2303.15343, section 3): most pairs are negatives.
_SIGMOID_BIAS = -10.0


class Contrast:
    """A contrastive loss between two sides of the global batch, with its learnable scalars.

    The scalars are parameters of the method itself, ``logit_scale`` and ``logit_bias``: OpenCLIP's names, in
    every checkpoint.

    Attributes:
        logit_scale_min: Lower bound of the scale.
        stop_gradient_images: The images enter as constants.
        stop_gradient_contexts: The other side enters as a constant.
        override: Stands for the loss in a microbatch (GradCache); None for the loss itself.

    Args:
        owner: The method.
        loss: ``info_nce``, or ``sigmoid`` (SigLIP's, with a learnable bias).
        logit_scale_init: Scale (1 / temperature) at the start.
        logit_scale_max: The scale is clamped to at most this.
        backend: ``torch`` or ``triton`` for the fused loss; None chooses by device.
    """

    def __init__(
        self,
        owner: nn.Module,
        loss: ContrastiveLoss = "info_nce",
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        backend: str | None = None,
    ):
        bias = nn.Parameter(torch.tensor(_SIGMOID_BIAS)) if loss == "sigmoid" else None
        owner.register_parameter("logit_scale", nn.Parameter(torch.tensor(math.log(logit_scale_init))))
        owner.register_parameter("logit_bias", bias)
        self._owner = owner
        self.logit_scale_min, self.logit_scale_max = LOGIT_SCALE_MIN, logit_scale_max
        self.backend = backend
        self.stop_gradient_images = self.stop_gradient_contexts = False
        self.override: Callable[..., Tensor] | None = None

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale, a 0-dim parameter; to compute with it, take it by ``sharding.local``."""
        return self._owner.logit_scale  # type: ignore[return-value]

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """Bias of the sigmoid loss, 0-dim; InfoNCE has none."""
        return self._owner.logit_bias  # type: ignore[return-value]

    @property
    def scalars(self) -> list[nn.Parameter]:
        """The learnable scalars."""
        return [scalar for scalar in (self.logit_scale, self.logit_bias) if scalar is not None]

    def scale(self) -> Tensor:
        """Scale of the logits (0-dim), exp of the parameter.

        The parameter itself is held between its bounds, as in OpenCLIP: clamping the result would leave it
        without a gradient beyond the maximum, and it would never come back.
        """
        with torch.no_grad():
            local(self.logit_scale).clamp_(math.log(self.logit_scale_min), math.log(self.logit_scale_max))
        return local(self.logit_scale).exp()

    def __call__(self, images: Tensor, contexts: Tensor, total: Tensor) -> Tensor:
        """This rank's and microbatch's share of the loss, or what stands for it."""
        return (self.override or self.share)(images, contexts, total)

    def share(self, images: Tensor, contexts: Tensor, total: Tensor) -> Tensor:
        """This rank's share of the loss over the global batch; shares add up over ranks.

        Args:
            images: [P, E] features of images, not normalised; [P, Q, E] where an image has several, of which
                the one nearest to a context counts (InfoNCE only).
            contexts: [P, E] features of what belongs to them, not normalised.
            total: Pairs of the global batch.
        """
        # A side that is stopped still enters times 0: DDP wants a gradient of every parameter.
        stopped = torch.zeros((), device=images.device)
        if self.stop_gradient_images:
            stopped, images = stopped + 0.0 * images.sum(), images.detach()
        if self.stop_gradient_contexts:
            stopped, contexts = stopped + 0.0 * contexts.sum(), contexts.detach()
        scale = self.scale()
        if self.logit_bias is not None:
            loss = sigmoid_contrastive_loss(
                images, contexts, scale, local(self.logit_bias), total=total, backend=self.backend
            )
        elif images.ndim == 3:
            loss = several_contrastive_loss(images, contexts, scale, total=total)
        else:
            loss = contrastive_loss(images, contexts, scale, total=total, backend=self.backend)
        return loss + stopped
