"""Freeze and unfreeze parts of the method, layer by layer."""

from __future__ import annotations

import torch
from composer.core import Event, State
from composer.loggers import Logger
from torch import nn
from torch.optim import Optimizer

from lcl_composer.algorithms.schedule import Schedule, Scheduled, Shape
from lcl_composer.errors import ConfigError, did_you_mean
from lcl_composer.methods.method import Method


class LayerFreezing(Scheduled):
    """Moves the frozen share of the layers, counted from the input, over training.

    ``{parts: [encoder]}`` freezes the encoder for good (the paper's multi-modal incremental training, figure
    1c); ``{parts: [encoder], start: 1, end: 0, begin: 1ep, until: 1ep}`` releases it after an epoch;
    ``{start: 1, end: 0, until: 0.5dur}`` releases it from the top down. A wholly frozen part runs in eval
    mode.

    What is frozen for the whole run needs no gradients and saves their time. What is frozen for a while still
    computes them, and drops them before clipping and optimizer (which skips the weight, its decay included):
    DDP fixes at its construction which parameters it waits for. Logged as ``algorithms/frozen_layers``, the
    share that is frozen.

    Args:
        parts: Which of the method's parts (``encoder``, ``language_model``, ...); all follow one schedule.
        start: Share frozen up to ``begin``, 0 to 1.
        end: Share frozen from ``until`` on, 0 to 1.
        shape: The way between.
        begin: When it starts to move.
        until: When it arrives.

    Raises:
        ValueError: If no part is named, a share is not in 0..1, or the times do not fit each other.
    """

    def __init__(
        self,
        parts: list[str],
        start: float = 1.0,
        end: float = 1.0,
        shape: Shape = "linear",
        begin: str = "0ba",
        until: str = "1dur",
    ):
        if not parts:
            raise ValueError("parts must name at least one part, such as encoder")
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise ValueError(f"start {start} and end {end} are shares, 0 to 1")
        super().__init__(Schedule(start, end, shape, begin, until), "algorithms/frozen_layers")
        self.parts = parts
        self._layers: dict[str, list[list[nn.Parameter]]] = {}
        self._frozen: list[nn.Parameter] = []
        self._in_eval: set[str] = set()

    def check(self, model: Method) -> None:
        """Refuse a part that is not there, a run that would train nothing, and one that would freeze nothing.

        Raises:
            ConfigError: If the method has no such part, or nothing besides those frozen for the whole run, or
                if no share comes to a layer.
        """
        if unknown := [part for part in self.parts if part not in model.parts]:
            raise ConfigError(
                f"algorithms.layer_freezing.parts: the method {type(model).__name__} has no part "
                f"{unknown[0]!r}; {did_you_mean(unknown[0], model.parts)}"
            )
        share = max(self.schedule.start, self.schedule.end)
        counts = [len(layers_from_input(model.parts[part])) for part in self.parts]
        if not any(round(share * count) for count in counts):
            raise ConfigError(
                f"algorithms.layer_freezing: {share:g} of {max(counts)} layers is none; raise start or end"
            )
        parts = {model.part_of(name) for name, p in model.named_parameters() if p.requires_grad}
        if self.schedule.start == self.schedule.end == 1 and parts <= set(self.parts):
            raise ConfigError(
                "algorithms.layer_freezing.parts: has all that the method trains; leave one part out"
            )

    def prepare(self, model: Method) -> None:
        """Find the layers; what stays frozen leaves the graph before DDP is built."""
        self._layers = {part: layers_from_input(model.parts[part]) for part in self.parts}
        if self.schedule.start == self.schedule.end == 1:
            for part in self.parts:
                model.parts[part].requires_grad_(False)

    def match(self, event: Event, state: State) -> bool:
        """Also after each backward, before clipping."""
        return event == Event.AFTER_BACKWARD or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Choose the frozen layers before a batch; drop their gradients after each backward."""
        if event == Event.AFTER_BACKWARD:
            for parameter in self._frozen:
                parameter.grad = None
            return
        super().apply(event, state, logger)
        if event == Event.BATCH_START:
            for optimizer in state.optimizers:
                create_missing_state(optimizer, [p for p in self._frozen if p.requires_grad])

    def set(self, model: Method, value: float) -> float:
        """Freeze this share of each part's layers, rounded; return the share of all layers together."""
        self._frozen, frozen = [], 0
        for part, layers in self._layers.items():
            count = round(value * len(layers))
            frozen += count
            self._frozen += [parameter for layer in layers[:count] for parameter in layer]
            self._set_mode(part, model.parts[part], count == len(layers))
        return frozen / sum(map(len, self._layers.values()))

    def _set_mode(self, name: str, part: nn.Module, frozen: bool) -> None:
        """Eval mode while wholly frozen: the Trainer sets train mode after each evaluation."""
        if frozen:
            part.eval()
            self._in_eval.add(name)
        elif name in self._in_eval:
            part.train()
            self._in_eval.discard(name)


def create_missing_state(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    """Give parameters that were never stepped the state of a first step to come, all zeros.

    A checkpoint with some states missing cannot be loaded: torch looks for one of every trainable parameter.
    """
    missing = [parameter for parameter in parameters if parameter not in optimizer.state]
    if not missing:
        return
    optimizer.zero_grad(set_to_none=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in missing:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter in missing:
        parameter.grad = None
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def layers_from_input(part: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a network by layer, from the input to the output.

    The layers are the largest ModuleList or Sequential in it. What is registered before them (embeddings) is
    the first layer, what comes after (final norm) the last; a network without layers is one.
    """
    stacks = [m for m in part.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    parameters = list(part.parameters())
    if not stacks:
        return [parameters]
    stack = max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()))
    layers = [list(layer.parameters()) for layer in stack]
    within = {id(parameter) for layer in layers for parameter in layer}
    first = next(i for i, parameter in enumerate(parameters) if id(parameter) in within)
    after = [parameter for parameter in parameters[first:] if id(parameter) not in within]
    return [layer for layer in (parameters[:first], *layers, after) if layer]
