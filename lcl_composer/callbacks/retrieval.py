"""Retrieval on held-out documents while training goes on."""

from __future__ import annotations

import numpy as np
from composer.core import State
from composer.loggers import Logger
from matplotlib import colormaps
from torch import Tensor
from torch.nn.functional import normalize

from lcl_composer.callbacks.averaged import averaged
from lcl_composer.callbacks.periodic import Periodic, evaluating
from lcl_composer.callbacks.pictures import show
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.metrics import retrieval_metrics
from lcl_composer.evaluation.retrieval import collect_features
from lcl_composer.methods.method import Method, contrast_of, method_of

_PAIRS_SHOWN = 64
_SIDE = 384  # pixels


class Retrieval(Periodic):
    """Recall at 1, 5 and 10 of held-out images against the text before them, both ways.

    Logs ``retrieval/image_to_text/recall@k``, ``retrieval/text_to_image/recall@k`` and, beside them,
    ``retrieval/chance/recall@k``, over all ranks; shows the cosines of 64 pairs as ``retrieval_cosines``, an
    image a row, its text on the diagonal. With EMA it measures what evaluations measure.

    Args:
        every: Composer time string.
        max_images: Anchored images of ``data.eval`` to rank against each other.

    Raises:
        ConfigError: If ``max_images`` is below 1.
    """

    def __init__(self, every: str = "1ep", max_images: int = 256):
        if max_images < 1:
            raise ConfigError(f"callbacks.retrieval.max_images: is {max_images}, must be at least 1")
        super().__init__(every)
        self.max_images = max_images

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts nothing."""
        contrast_of(model, "callbacks.retrieval")

    def fit_start(self, state: State, logger: Logger) -> None:
        """Raise ConfigError where there is nothing to search in, or the method contrasts nothing."""
        self.check(method_of(state))
        if not state.evaluators:
            raise ConfigError("callbacks.retrieval: searches held-out documents; set data.eval")

    def act(self, state: State, logger: Logger) -> None:
        """Measure, log and show."""
        held_out = state.evaluators[0].dataloader.dataloader
        with averaged(state, "evaluate"), evaluating(state):
            features = collect_features(method_of(state), held_out, self.max_images)
        metrics = retrieval_metrics(features.images, features.contexts)
        logger.log_metrics({f"retrieval/{name}": value for name, value in metrics.items()})
        if features.keys:
            show(state, logger, "retrieval_cosines", draw_cosines(features.images, features.contexts))


def draw_cosines(images: Tensor, contexts: Tensor) -> np.ndarray:
    """Cosines of the first pairs as a heat map, the lowest dark and the highest bright.

    Args:
        images: [N, E], not normalised; row i belongs to row i of ``contexts``.
        contexts: [N, E].

    Returns:
        uint8 [H, H, 3].
    """
    rows, columns = (normalize(x[:_PAIRS_SHOWN].float(), dim=1) for x in (images, contexts))
    cosines = (rows @ columns.T).nan_to_num().numpy()
    shares = (cosines - cosines.min()) / max(float(np.ptp(cosines)), 1e-6)
    tile = max(1, _SIDE // len(shares))
    pixels = (255 * colormaps["viridis"](shares)[..., :3]).astype(np.uint8)
    return pixels.repeat(tile, 0).repeat(tile, 1)
