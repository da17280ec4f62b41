"""Linear probe of the encoder's features while training goes on."""

from __future__ import annotations

from torch import Tensor

from lcl_composer.callbacks.frozen_features import FrozenFeatures
from lcl_composer.evaluation.features import FeatureKind
from lcl_composer.evaluation.probe import linear_probe


class LinearProbe(FrozenFeatures):
    """Accuracy of logistic regression on the encoder's features, fitted anew each time.

    Logs ``linear_probe/accuracy`` and ``linear_probe/chance``. It is the probe of the table at the end of the
    run (``evaluation.probe``), see :func:`lcl_composer.evaluation.probe.linear_probe`.

    Args:
        train: Images to fit on: ``folder/<class>/*.png|jpg|...``, or shards of labelled images.
        val: Images to measure on, of the same classes.
        every: Composer time string.
        features: ``patch_mean`` (mean of the encoder's patch tokens) or ``pooled`` (the pooler's latent).
        batch_size: Images a forward.
    """

    name = "linear_probe"

    def __init__(
        self,
        train: str,
        val: str,
        every: str = "1ep",
        features: FeatureKind = "patch_mean",
        batch_size: int = 64,
    ):
        super().__init__(every, train, val, features, batch_size)

    def measure(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Fit and classify."""
        result = linear_probe(train, val)
        return {"accuracy": result.accuracy, "chance": result.chance}
