"""Measure an encoder with other weights than its own: at initialisation, beside trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_PARTS = ("encoder", "pooler")


def image_side_state(model: nn.Module) -> dict[str, Tensor]:
    """CPU copy of the weights of ``model.encoder`` and ``model.pooler``, to compare with later."""
    return {
        f"{part}.{name}": value.detach().cpu().clone()
        for part in _PARTS
        for name, value in getattr(model, part).state_dict().items()
    }


@contextmanager
def image_side_weights(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Give ``model.encoder`` and ``model.pooler`` other weights inside the body, and their own back after.

    The same modules run both encoders, so that nothing but the weights differs in a comparison.

    Args:
        model: Has ``encoder`` and ``pooler``.
        state: What :func:`image_side_state` returned.
    """
    own = image_side_state(model)
    try:
        _load_image_side(model, state)
        yield
    finally:
        _load_image_side(model, own)


def _load_image_side(model: nn.Module, state: dict[str, Tensor]) -> None:
    for part in _PARTS:
        prefix = f"{part}."
        values = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        getattr(model, part).load_state_dict(values)
