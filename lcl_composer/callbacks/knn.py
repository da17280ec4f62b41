"""k-nearest neighbours of the encoder's features while training goes on."""

from __future__ import annotations

from torch import Tensor

from lcl_composer.callbacks.frozen_features import FrozenFeatures
from lcl_composer.evaluation.features import FeatureKind
from lcl_composer.evaluation.knn import knn_accuracy


class KNN(FrozenFeatures):
    """Accuracy of a weighted k-nearest-neighbour classifier on the encoder's features; fits nothing.

    Logs ``knn/accuracy`` and ``knn/chance``, see :func:`lcl_composer.evaluation.knn.knn_classify`.

    Args:
        train: The neighbours: ``folder/<class>/*.png|jpg|...``, or shards of labelled images.
        val: Images to classify, of the same classes.
        every: Composer time string.
        k: Neighbours that vote.
        temperature: A vote weighs ``exp(cosine / temperature)``.
        features: ``patch_mean`` (mean of the encoder's patch tokens) or ``pooled`` (the pooler's latent).
        batch_size: Images a forward.

    Raises:
        ValueError: If ``k`` or ``temperature`` is not above 0.
    """

    name = "knn"

    def __init__(
        self,
        train: str,
        val: str,
        every: str = "1ep",
        k: int = 20,
        temperature: float = 0.07,
        features: FeatureKind = "patch_mean",
        batch_size: int = 64,
    ):
        if k < 1 or temperature <= 0:
            raise ValueError(f"k {k} and temperature {temperature} must be above 0")
        super().__init__(every, train, val, features, batch_size)
        self.k, self.temperature = k, temperature

    def measure(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Classify the validation images."""
        result = knn_accuracy(train, val, k=self.k, temperature=self.temperature)
        return {"accuracy": result.accuracy, "chance": result.chance}
