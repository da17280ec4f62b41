"""A method whose weights are sharded, whole for a while: to be measured and exported as any other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer.core import State
from torch import nn

from lcl_composer.methods.method import Method, StandIn, method_of
from lcl_composer.models.sharding import whole_tensor


def stand_in_of(model: Method) -> StandIn:
    """A copy of a method without memory for its weights, to be made before the method is sharded."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()
    }
    empty |= {id(b): b.to("meta") for b in model.buffers()}
    return StandIn(copy.deepcopy(model, empty))


@contextmanager
def whole(state: State) -> Iterator[None]:
    """Inside the body ``method_of(state)`` is an ordinary module with the weights of now, on every rank.

    Where the method is not sharded it is the method itself. Otherwise all ranks must enter together, and
    inside each may do as it likes: what one does to the weights is forgotten afterwards.
    """
    model = method_of(state)
    if model.stand_in is None:
        yield
        return
    _fill(model.stand_in.model, model)
    model.stand_in.active = True
    try:
        yield
    finally:
        model.stand_in.active = False
        model.stand_in.model.to("meta")


@torch.no_grad()
def _fill(copied: Method, model: Method) -> None:
    """Give the copy the whole weights and the buffers of a sharded method, and what algorithms have set."""
    for name, term in model.terms.items():
        copied.terms[name].weight = term.weight
        if term.contrast and (contrast := copied.terms[name].contrast):
            vars(contrast).update({k: v for k, v in vars(term.contrast).items() if k != "_owner"})
    tensors = {name: whole_tensor(tensor).clone() for name, tensor in model.state_dict().items()}
    copied.load_state_dict(tensors, assign=True)
    for name, buffer in model.named_buffers():
        if name not in tensors:
            place, _, attribute = name.rpartition(".")
            setattr(copied.get_submodule(place), attribute, buffer.clone())
