"""Are the features alive? Effective rank, alignment and uniformity of both sides of the contrastive loss."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from lcl_composer.callbacks.periodic import HeldOut, Periodic, evaluating
from lcl_composer.evaluation.metrics import nearest_features
from lcl_composer.evaluation.quiet import device_of
from lcl_composer.evaluation.retrieval import to_device
from lcl_composer.methods.method import Method, contrast_of, method_of

log = logging.getLogger(__name__)

ADVICE = "raise method.contrastive_weight, lower the learning rate, or look at the data"


class FeatureHealth(Periodic):
    """Log the health of image and context features and warn when one side collapses.

    Measured on the unit features of held-out documents, the same ones each time (of the current batch where
    a run has no held-out data), on rank 0's share of them. Metrics under ``feature_health/``:

    - ``image_effective_rank``, ``context_effective_rank``: dimensions in use, 1..min(images, width). 1 is
      collapse to a point, as generation alone is known to do.
    - ``alignment``: mean squared distance of an image to its own context, 0..4; low is aligned.
    - ``image_uniformity``, ``context_uniformity``: log mean Gaussian potential, -4..0; 0 is collapse.
    - ``logit_scale``: 1 / temperature.

    A warning tells when an effective rank falls under ``collapse_share`` of the highest one seen.

    Args:
        every: Composer time string.
        images: Held-out images to measure on; bounds the effective rank.
        collapse_share: Share of the highest effective rank, 0..1.

    Raises:
        ValueError: If ``collapse_share`` is no share, or ``images`` below 2.
    """

    def __init__(self, every: str = "100ba", images: int = 256, collapse_share: float = 0.5):
        super().__init__(every)
        if images < 2 or not 0 <= collapse_share <= 1:
            raise ValueError(
                f"images {images} must be at least 2 and collapse_share {collapse_share} a share"
            )
        self.collapse_share = collapse_share
        self.held_out = HeldOut(images)
        self.highest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The highest ranks seen, so that a resumed run compares with them."""
        return {"highest": dict(self.highest), "images": self.held_out.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the highest ranks of a checkpoint, unless as many images could not reach them."""
        if state.get("images", self.held_out.images) == self.held_out.images:
            self.highest = dict(state["highest"])

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts nothing."""
        contrast_of(model, "callbacks.feature_health")

    def act(self, state: State, logger: Logger) -> None:
        """Measure, log, warn."""
        sides = self._features(state)
        if len(sides["image"]) < 2:
            return
        metrics = {f"{side}_effective_rank": effective_rank(x) for side, x in sides.items()}
        metrics |= {f"{side}_uniformity": uniformity(x) for side, x in sides.items()}
        metrics["alignment"] = alignment(sides["image"], sides["context"])
        _, contrast = contrast_of(method_of(state), "callbacks.feature_health")
        metrics["logit_scale"] = float(contrast.scale())
        logger.log_metrics({f"feature_health/{name}": value for name, value in metrics.items()})
        for side in sides:
            self._warn_of_collapse(side, metrics[f"{side}_effective_rank"], int(state.timestamp.batch))

    def _features(self, state: State) -> dict[str, Tensor]:
        """Unit features [P, E] of both sides, float32 on the CPU."""
        with evaluating(state):
            model = method_of(state)
            term, _ = contrast_of(model, "callbacks.feature_health")
            parts = [model(to_device(batch, device_of(model))) for batch in self.held_out.batches(state)]
        images, contexts = (torch.cat([part[name] for part in parts]).float().cpu() for name in term.reads)
        sides = {"image": nearest_features(images, contexts), "context": contexts}
        return {side: torch.nn.functional.normalize(features, dim=1) for side, features in sides.items()}

    def _warn_of_collapse(self, side: str, rank: float, batch: int) -> None:
        """Compare with the highest rank seen; NaN (features that are not finite) is worth a warning too."""
        if math.isfinite(rank):
            self.highest[side] = max(rank, self.highest.get(side, 0.0))
        healthy = rank >= self.collapse_share * self.highest.get(side, 0.0)
        if not healthy and dist.get_global_rank() == 0:
            was = self.highest.get(side, 0.0)
            ranks = f"effective rank {rank:.1f} after {was:.1f}"
            log.warning(f"batch {batch}: the {side} features are collapsing, {ranks}; {ADVICE}")


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of [N, E].

    Roy & Vetterli, "The effective rank", EUSIPCO 2007, equation 4. The mean is not taken out: features that
    are all alike have effective rank 1. Features that are not finite give NaN.
    """
    if not torch.isfinite(features).all():
        return float("nan")
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=1e-300)
    return float(torch.special.entr(shares).sum().exp())


def alignment(images: Tensor, contexts: Tensor) -> float:
    """Mean squared distance of matching unit features [N, E].

    Wang & Isola, "Understanding contrastive representation learning", ICML 2020, equation 1, alpha = 2.
    """
    return float((images - contexts).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean over pairs of ``exp(-2 |x - y|^2)`` of unit features [N, E], N >= 2.

    Wang & Isola 2020, equation 2, t = 2.
    """
    return float(torch.pdist(features).square().mul(-2).exp().mean().log())
