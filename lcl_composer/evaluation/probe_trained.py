"""A linear probe of the trained encoder beside the untrained one, for the table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.image import eval_transform
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.evaluation import Evaluation, Row
from lcl_composer.evaluation.features import FeatureKind, check_features, open_image_folder
from lcl_composer.evaluation.probe import check_same_classes, probe_model
from lcl_composer.evaluation.weights import image_side_state, image_side_weights

if TYPE_CHECKING:
    from lcl_composer.methods.method import Method

#: What the accuracy of before training stands under: of random weights, or of weights from elsewhere.
UNTRAINED, AS_IT_CAME = "untrained", "as_it_came"


class FrozenProbe(Evaluation):
    """Linear probe of the trained encoder and of the same encoder before, on two image folders.

    What it was before is called untrained, or, if it was built with weights from elsewhere, as it came. It is
    the model's own at construction: its weights are copied before any checkpoint is loaded, so a resumed run,
    whose construction gives the same weights from the same seed, compares with the same encoder.

    Args:
        train: Labelled images, a folder a class or shards, to fit on and to choose the regularisation on.
        val: Labelled images of the same classes to measure on.
        image_size: Side of the images in pixels.
        features: ``patch_mean`` (mean of the encoder's patch tokens, the encoder alone) or ``pooled`` (the
            pooler's latent).
        batch_size: Images a forward.

    Raises:
        ConfigError: If ``batch_size`` is below 1.
        DataError: If a folder is missing or holds no images in class folders, or the two differ in their
            classes.
    """

    def __init__(
        self,
        train: str,
        val: str,
        image_size: int,
        features: FeatureKind = "patch_mean",
        batch_size: int = 64,
    ):
        if batch_size < 1:
            raise ConfigError(f"evaluation.probe.batch_size: is {batch_size}, must be at least 1")
        transform = partial(eval_transform, size=image_size)
        self.train, self.val = (open_image_folder(path, transform) for path in (train, val))
        check_same_classes(self.train, self.val)
        self.features: FeatureKind = features
        self.batch_size = batch_size
        self._before: dict[str, Tensor] = {}

    def start(self, model: Method) -> None:
        """Keep the weights of before training; raises ConfigError if the method lacks the features."""
        check_features(self.features, model, "evaluation.probe")
        self._before = image_side_state(model)

    def measure(
        self, model: Method, held_out: Iterable[PackedBatch] | None, folder: Path
    ) -> dict[str, Any] | None:
        """Accuracies of both, 0..1, with chance and what was measured on."""
        probe = partial(
            probe_model, model, self.train, self.val, features=self.features, batch_size=self.batch_size
        )
        trained = probe()
        with image_side_weights(model, self._before):
            before = probe()
        return {
            "trained": trained.accuracy,
            AS_IT_CAME if model.encoder.weights else UNTRAINED: before.accuracy,
            "chance": trained.chance,
            "features": self.features,
            "classes": len(self.val.classes),
            "val_images": len(self.val),
        }

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """The accuracy."""
        name = AS_IT_CAME if AS_IT_CAME in result else UNTRAINED
        difference = f"{100 * (result['trained'] - result[name]):+.1f} points"
        before = f"{result[name]:.1%} {name.replace('_', ' ')}"
        return [Row("Linear probe accuracy", before, f"{result['trained']:.1%}", difference)]

    def note(self, result: dict[str, Any]) -> str:
        """The images, and chance."""
        return (
            f"Probe: {result['val_images']:,} images of {result['classes']} classes, "
            f"{result['features']} features; by chance {result['chance']:.1%}"
        )
