"""Measure the encoder, frozen for the moment, on folders of labelled images while training goes on."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from lcl_composer.callbacks.averaged import averaged
from lcl_composer.callbacks.periodic import Periodic, evaluating
from lcl_composer.data.image import eval_transform
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.features import FeatureKind, check_features, extract_features, open_image_folder
from lcl_composer.evaluation.probe import check_same_classes
from lcl_composer.methods.method import Method, method_of


class FrozenFeatures(Periodic):
    """Extract features of two image folders on all ranks, measure them on rank 0, log the result.

    The folders are opened when training starts: one that is missing stops the run at once. With EMA the
    average is measured where evaluations measure it.

    Args:
        every: Composer time string.
        train: ``folder/<class>/*.png|jpg|...``, or shards of labelled images.
        val: Images of the same classes.
        features: ``patch_mean`` (mean of the encoder's patch tokens) or ``pooled`` (the pooler's latent).
        batch_size: Images a forward.

    Raises:
        ConfigError: If ``batch_size`` is below 1.
    """

    name: str

    def __init__(self, every: str, train: str, val: str, features: FeatureKind, batch_size: int):
        super().__init__(every)
        if batch_size < 1:
            raise ConfigError(f"callbacks.{self.name}.batch_size: is {batch_size}, must be at least 1")
        self.train, self.val = train, val
        self.features: FeatureKind = features
        self.batch_size = batch_size

    @abstractmethod
    def measure(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Metrics by name, from features [N, F] float32 and labels [N]; rank 0 calls it."""

    def check(self, model: Method) -> None:
        """Raise ConfigError if nothing pools what is to be measured."""
        check_features(self.features, model, f"callbacks.{self.name}")

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the folders.

        Raises:
            ConfigError: If nothing pools what is to be measured.
            DataError: If a folder is missing, or they differ in their classes.
        """
        transform = partial(eval_transform, size=method_of(state).encoder.image_size)
        self._folders = [open_image_folder(path, transform) for path in (self.train, self.val)]
        check_same_classes(*self._folders)
        self.check(method_of(state))

    def act(self, state: State, logger: Logger) -> None:
        """Extract, measure, log."""
        with averaged(state, "evaluate"), evaluating(state):
            train, val = (
                extract_features(method_of(state), folder, kind=self.features, batch_size=self.batch_size)
                for folder in self._folders
            )
            if dist.get_global_rank() == 0:
                metrics = self.measure(train, val)
                logger.log_metrics({f"{self.name}/{key}": value for key, value in metrics.items()})
