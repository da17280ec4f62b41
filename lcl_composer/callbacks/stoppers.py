"""End a run early, by a held-out metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import composer.callbacks
import torch
from composer.core import State, Time, Timestamp, TimeUnit
from composer.loggers import Logger
from torchmetrics import Metric

from lcl_composer.errors import ConfigError
from lcl_composer.methods.method import Method

Better = Literal["less", "greater"]
#: Metrics by name, by the label of the data set that they are measured on.
Measured = Mapping[str, Mapping[str, Metric]]


class EarlyStopper(composer.callbacks.EarlyStopper):
    """Stop when a held-out metric has not got better for a while.

    What is better is the metric's own to say: losses fall. Composer takes it from the metric's name, and
    would wait for a loss called ``contrastive`` to rise. The best value so far is kept in checkpoints.

    Args:
        monitor: A held-out metric, such as ``contrastive``.
        dataloader_label: The data set that it is measured on.
        comp: ``less`` or ``greater``: which value is better; None: as the metric says.
        min_delta: By how much a value must be better to count.
        patience: How long to wait, a Composer time string in ``ep`` or ``ba``.

    Raises:
        ValueError: If ``patience`` is another time, or ``min_delta`` below 0.
    """

    def __init__(
        self,
        monitor: str,
        dataloader_label: str = "eval",
        comp: Better | None = None,
        min_delta: float = 0.0,
        patience: str = "1ep",
    ):
        waits = Time.from_timestring(patience)
        if waits.unit not in (TimeUnit.EPOCH, TimeUnit.BATCH) or waits.value < 0:
            raise ValueError(f"patience {patience!r} must be in ep or ba")
        if min_delta < 0:
            raise ValueError(f"min_delta {min_delta} must not be negative")
        super().__init__(monitor, dataloader_label, comp, min_delta, patience)
        self._comp: Better | None = comp

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method measures no such loss on ``data.eval``."""
        self._find({"eval": model.get_metrics(False)})

    def fit_start(self, state: State, logger: Logger) -> None:
        """Find the metric and its direction; raises ConfigError."""
        self.comp_func = self._find(state.eval_metrics)

    def _find(self, measured: Measured) -> Any:
        key = "callbacks.early_stopper.monitor"
        return _better(key, measured, self.dataloader_label, self.monitor, self._comp)

    def state_dict(self) -> dict[str, Any]:
        """The best value and when it was."""
        if self.best is None or self.best_occurred is None:
            return {}
        when = {"epoch": int(self.best_occurred.epoch), "batch": int(self.best_occurred.batch)}
        return {"best": float(self.best), "of": self._watched, **when}

    @property
    def _watched(self) -> list[str]:
        return [self.dataloader_label, self.monitor]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the best value of a checkpoint, if it is of the same metric."""
        if state and state.get("of", self._watched) == self._watched:
            self.best = torch.tensor(state["best"])
            self.best_occurred = Timestamp(epoch=state["epoch"], batch=state["batch"])


class ThresholdStopper(composer.callbacks.ThresholdStopper):
    """Stop when a held-out metric has passed a threshold.

    Args:
        monitor: A held-out metric, such as ``contrastive``.
        threshold: The value to pass.
        dataloader_label: The data set that it is measured on.
        comp: ``less`` or ``greater`` than the threshold; None: what the metric calls better.
    """

    def __init__(
        self, monitor: str, threshold: float, dataloader_label: str = "eval", comp: Better | None = None
    ):
        super().__init__(monitor, dataloader_label, threshold, comp=comp)
        self._comp: Better | None = comp

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method measures no such loss on ``data.eval``."""
        self._find({"eval": model.get_metrics(False)})

    def fit_start(self, state: State, logger: Logger) -> None:
        """Find the metric and its direction; raises ConfigError."""
        self.comp_func = self._find(state.eval_metrics)

    def _find(self, measured: Measured) -> Any:
        key = "callbacks.threshold_stopper.monitor"
        return _better(key, measured, self.dataloader_label, self.monitor, self._comp)


def _better(key: str, measured: Measured, label: str, name: str, comp: Better | None) -> Any:
    """Whether a value of a held-out metric is better than another, as a function of both."""
    found = measured.get(label, {})
    if name not in found:
        known = [f"{name} ({of})" for of, metrics in measured.items() for name in metrics]
        there = f"there are {', '.join(known)}" if known else "nothing is held out, set data.eval"
        raise ConfigError(f"{key}: no metric {name!r} of data set {label!r}; {there}")
    greater = found[name].higher_is_better if comp is None else comp == "greater"
    if greater is None:
        raise ConfigError(f"{key}: {name!r} does not say what is better; set comp")
    return torch.greater if greater else torch.less
