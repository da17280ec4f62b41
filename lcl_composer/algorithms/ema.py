"""An exponential moving average of the weights, beside the weights that are trained."""

from __future__ import annotations

from typing import Any, Literal

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lcl_composer.algorithms.schedule import in_batches
from lcl_composer.errors import ConfigError
from lcl_composer.methods.method import method_of
from lcl_composer.models.sharding import local, whole_tensor

Part = Literal["all", "encoder"]


class EMA(Algorithm):
    """Averages the weights over batches; evaluates and exports the average on request.

    ``average = s * average + (1 - s) * weights`` with ``s = 2 ** (-update_interval / half_life)``.

    The average lies in the checkpoint beside the trained weights, as ``state.algorithms.EMA.average``, under
    the names of the bare model: ``state.model`` is what training goes on from, whatever the number of ranks
    and with or without EMA. (Composer's EMA saves the average as ``state.model``: a resume without it, or on
    another number of ranks, trains on from the average.)

    Args:
        half_life: Batches in which old weights lose half of their share, such as ``1000ba``.
        begin: Up to this batch the average is the weights themselves; a multiple of ``update_interval``.
        update_interval: Batches between updates.
        part: ``all``, or the ``encoder`` alone.
        evaluate: The Trainer's evaluations on ``data.eval`` measure the average.
        export: At the end of training the average becomes the model that is measured and exported.

    Raises:
        ValueError: If a time is not in ``ba`` or not above 0 (``begin`` may be 0), or ``begin`` falls between
            two updates.
    """

    def __init__(
        self,
        half_life: str = "1000ba",
        begin: str = "0ba",
        update_interval: str = "1ba",
        part: Part = "all",
        evaluate: bool = True,
        export: bool = True,
    ):
        self.begin = in_batches("begin", begin, least=0)
        self.interval = in_batches("update_interval", update_interval)
        if self.begin % self.interval:
            raise ValueError(f"begin {begin!r} must be a multiple of update_interval {update_interval!r}")
        self.smoothing = 2 ** (-self.interval / in_batches("half_life", half_life))
        self.part, self.evaluate, self.export = part, evaluate, export
        self.average: dict[str, Tensor] = {}
        self.in_model = False  # whether the model holds the average and ``average`` the trained weights
        self._evaluating = False
        self._loaded: dict[str, Tensor] | None = None

    def match(self, event: Event, state: State) -> bool:
        """Made once a checkpoint is loaded; updated after each batch; swapped around what measures."""
        if event == Event.BATCH_END:
            return int(state.timestamp.batch) % self.interval == 0
        if event == Event.EVAL_START:
            return self.evaluate and not self.in_model
        if event == Event.EVAL_END:
            return self._evaluating
        if event == Event.FIT_END:
            return self.export and not self.in_model
        return event == Event.AFTER_LOAD or (event == Event.FIT_START and self.in_model)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Make, update or swap."""
        model = method_of(state)
        if event == Event.AFTER_LOAD:
            self._make(model)
        elif event == Event.BATCH_END:
            self.update(model, int(state.timestamp.batch))
        else:
            self.swap(model)
            self._evaluating = event == Event.EVAL_START

    @torch.no_grad()
    def update(self, model: nn.Module, batch: int) -> None:
        """Move the average towards the weights after ``batch`` batches."""
        weights = self._weights(model)
        if batch <= self.begin:
            for name, tensor in weights.items():
                self.average[name].copy_(tensor)
            return
        averages = [
            local(self.average[name]) for name, tensor in weights.items() if tensor.is_floating_point()
        ]
        tensors = [local(tensor) for tensor in weights.values() if tensor.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            averages, tensors, 1 - self.smoothing
        )
        for name, tensor in weights.items():
            if not tensor.is_floating_point():  # counters of batches seen and the like
                self.average[name].copy_(tensor)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average, in place; tied weights stand under two names."""
        weights = self._weights(model)
        held = {name: tensor.clone() for name, tensor in weights.items()}
        for name, tensor in weights.items():
            tensor.copy_(self.average[name])
        self.average = held
        self.in_model = not self.in_model

    def state_dict(self) -> dict[str, Any]:
        """The average as whole tensors, and in words what the checkpoint holds."""
        average = {name: whole_tensor(tensor) for name, tensor in self.average.items()}
        where = (
            ("the average", "the trained weights")
            if self.in_model
            else ("the trained weights", "the average")
        )
        return {
            **super().state_dict(),
            "holds": f"state.model: {where[0]}; state.algorithms.EMA.average: {where[1]}",
            "part": self.part,
            "in_model": self.in_model,
            "average": average,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what the checkpoint brings until the model is loaded too.

        Raises:
            ConfigError: If it was written by another EMA, or averages another part.
        """
        if "average" not in state:
            raise ConfigError(
                "algorithms.ema: the checkpoint was written by Composer's own EMA; it cannot resume"
            )
        if state["part"] != self.part:
            raise ConfigError(
                f"algorithms.ema.part: the checkpoint averages {state['part']!r}, this run {self.part!r}; "
                "set them alike, or take ema away to go on without"
            )
        self._loaded, self.in_model = state["average"], state["in_model"]

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors that are averaged, by name; they share the memory of the model's own."""
        prefix = "" if self.part == "all" else "encoder."
        return {name: t.detach() for name, t in model.state_dict().items() if name.startswith(prefix)}

    def _make(self, model: nn.Module) -> None:
        """The average of the checkpoint, on the weights' device and sharded as they are; else the weights."""
        weights = self._weights(model)
        if self._loaded is None:
            self.average = {name: tensor.clone() for name, tensor in weights.items()}
            return
        if wrong := set(self._loaded) ^ set(weights):
            raise ConfigError(
                f"algorithms.ema: checkpoint and model differ in {min(wrong)} and {len(wrong) - 1} more"
            )
        self.average = {name: _placed_like(self._loaded[name], tensor) for name, tensor in weights.items()}
        self._loaded = None


def _placed_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a whole tensor where and as ``tensor`` lies."""
    copy = whole.to(tensor.device, tensor.dtype, copy=True)
    if isinstance(tensor, DTensor):
        return distribute_tensor(copy, tensor.device_mesh, tensor.placements)
    return copy
