"""Numbers that are no numbers any more: found before they are kept, exported or measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lcl_composer.errors import DataError
from lcl_composer.models.sharding import local


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold an infinity or a NaN, in their order; of shards, ours."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(local(tensor)).all())
    ]


#: What to do about weights that training has lost.
_ADVICE = "training was lost before; take an earlier checkpoint, lower optimizer.lr or lengthen the warm-up"


def check_finite(what: str, tensors: Mapping[str, Tensor], advice: str = _ADVICE) -> None:
    """Refuse tensors that hold an infinity or a NaN.

    Args:
        what: What they are, and where, for the message.
        tensors: By name.
        advice: What to do about it.

    Raises:
        DataError: Names the first of them.
    """
    if lost := not_finite(tensors):
        raise DataError(
            f"{what}: {len(lost)} of {len(tensors)} tensors are not finite ({lost[0]!r}): {advice}"
        )
