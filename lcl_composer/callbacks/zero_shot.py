"""Zero-shot classification by prompts while training goes on."""

from __future__ import annotations

from composer.core import State
from composer.loggers import Logger

from lcl_composer.callbacks.averaged import averaged
from lcl_composer.callbacks.periodic import Periodic, evaluating
from lcl_composer.data.interleave import Layout
from lcl_composer.evaluation.texts import check_sides
from lcl_composer.evaluation.zero_shot import NameSet, Prompted, TemplateSet
from lcl_composer.methods.method import Method, method_of


class ZeroShot(Periodic):
    """Accuracy of zero-shot classification by prompts (OpenCLIP's templates), on a folder of labelled images.

    Logs ``zero_shot/top1``, ``top5``, ``mean_top1`` (mean over classes) and ``chance``. It is the measurement
    of the table at the end of the run (``evaluation.zero_shot``). With EMA it measures what evaluations
    measure.

    Args:
        images: ``folder/<class>/*.png|jpg|...``, or shards of labelled images.
        layout: The method's.
        every: Composer time string.
        templates: ``openai`` (80), ``simple`` (7), or texts with ``{}`` in place of the class name.
        names: Class names by folder, or ``imagenet`` for its thousand.
        batch_size: Images a forward.

    Raises:
        ConfigError: If templates do not fit.
    """

    def __init__(
        self,
        images: str,
        layout: Layout,
        every: str = "1ep",
        templates: TemplateSet | list[str] = "simple",
        names: NameSet | dict[str, str] = {},  # noqa: B006 (read only; a YAML shows it)
        batch_size: int = 64,
    ):
        super().__init__(every)
        self._settings = (layout, templates, names, batch_size)
        self.images = images

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method has no two sides to compare."""
        check_sides(model, "callbacks.zero_shot")

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the folder; raises DataError if it is missing, ConfigError if the method has no two sides."""
        model = method_of(state)
        self.check(model)
        self._prompted = Prompted(self.images, model.encoder.image_size, *self._settings)
        self._prompted.check()

    def act(self, state: State, logger: Logger) -> None:
        """Measure and log."""
        with averaged(state, "evaluate"), evaluating(state):
            found = self._prompted.measure(method_of(state))
        logger.log_metrics({f"zero_shot/{name}": value for name, value in found.numbers.items()})
