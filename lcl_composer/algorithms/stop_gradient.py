"""Stop the gradient of L_con on one of its two sides."""

from __future__ import annotations

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from lcl_composer.methods.method import Method, contrast_of, method_of


class StopGradient(Algorithm):
    """Makes one side of the contrast a constant target of the other.

    In LCL both sides carry gradient. With ``images`` stopped, L_con trains the language model only to
    foretell the latents; with ``contexts`` stopped, it trains the encoder only to be foretold. L_gen is not
    touched.

    Args:
        images: No gradient of L_con into pooler and encoder through the images' latents. The encoder still
            gets L_con's gradient through earlier images in a context.
        contexts: No gradient of L_con into the language model's output at ``<start_of_img>``.

    Raises:
        ValueError: If neither side is stopped.
    """

    def __init__(self, images: bool = False, contexts: bool = False):
        if not (images or contexts):
            raise ValueError("set images, contexts or both to true")
        self.images, self.contexts = images, contexts

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts nothing."""
        contrast_of(model, "algorithms.stop_gradient")

    def match(self, event: Event, state: State) -> bool:
        """At construction."""
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Throw the switches of the method's contrast."""
        _, contrast = contrast_of(method_of(state), "algorithms.stop_gradient")
        contrast.stop_gradient_images, contrast.stop_gradient_contexts = self.images, self.contexts
