"""A schedule for the weight of L_con."""

from __future__ import annotations

from lcl_composer.algorithms.schedule import Schedule, Scheduled, Shape
from lcl_composer.errors import ConfigError
from lcl_composer.methods.method import Method, contrast_of


class ContrastiveWeight(Scheduled):
    """Moves lambda in ``L = lambda * L_con + L_gen`` over training (LCL, arXiv 2406.07543, equation 8).

    A warm-up is ``{start: 0, end: 0.1, until: 2000ba}``; a switch half-way is ``{start: 0.1, end: 0, begin:
    0.5dur, until: 0.5dur}``. A constant weight is ``method.contrastive_weight``. Where the weight is 0, L_con
    is not computed. Logged as ``loss/contrastive_weight``.

    Args:
        start: Weight up to ``begin``.
        end: Weight from ``until`` on.
        shape: The way between.
        begin: When it starts to move.
        until: When it arrives.

    Raises:
        ValueError: If a weight is negative or the times do not fit each other.
    """

    def __init__(
        self, start: float, end: float, shape: Shape = "linear", begin: str = "0ba", until: str = "1dur"
    ):
        if min(start, end) < 0:
            raise ValueError(f"start {start} and end {end} must not be negative")
        super().__init__(Schedule(start, end, shape, begin, until), "loss/contrastive_weight")

    def check(self, model: Method) -> None:
        """Refuse a run that would train nothing for a while.

        Raises:
            ConfigError: If all weights would be 0, or the method contrasts nothing.
        """
        term, _ = contrast_of(model, "algorithms.contrastive_weight")
        others = sum(other.weight for other in model.terms.values() if other is not term)
        if others == 0 and min(self.schedule.start, self.schedule.end) == 0:
            raise ConfigError(
                "algorithms.contrastive_weight: reaches 0 while every other loss has the weight 0; "
                "nothing would be trained"
            )

    def prepare(self, model: Method) -> None:
        """Start at the start."""
        self.set(model, self.schedule.start)

    def set(self, model: Method, value: float) -> float:
        """Set lambda."""
        term, _ = contrast_of(model, "algorithms.contrastive_weight")
        term.weight = value
        return value
