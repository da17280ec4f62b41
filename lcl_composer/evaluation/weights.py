"""Measure an encoder with other weights than its own: at initialisation, beside trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def _image_side(model: nn.Module) -> dict[str, nn.Module]:
    """Encoder and, where there is one, pooler."""
    parts = {name: getattr(model, name, None) for name in ("encoder", "pooler")}
    return {name: part for name, part in parts.items() if part is not None}


def image_side_state(model: nn.Module) -> dict[str, Tensor]:
    """CPU copy of the weights of encoder and pooler, to compare with later; none of the meta device."""
    return {
        f"{part}.{name}": value.detach().cpu().clone()
        for part, module in _image_side(model).items()
        for name, value in module.state_dict().items()
        if not value.is_meta
    }


@contextmanager
def image_side_weights(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Give encoder and pooler other weights inside the body, and their own back after.

    The same modules run both encoders, so that nothing but the weights differs in a comparison.

    Args:
        model: Has ``encoder`` and may have ``pooler``.
        state: What :func:`image_side_state` returned.
    """
    own = image_side_state(model)
    try:
        _load_image_side(model, state)
        yield
    finally:
        _load_image_side(model, own)


def _load_image_side(model: nn.Module, state: dict[str, Tensor]) -> None:
    for part, module in _image_side(model).items():
        prefix = f"{part}."
        values = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        module.load_state_dict(values)
