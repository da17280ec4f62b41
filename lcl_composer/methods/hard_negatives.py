"""Draws the wrong images that a text is matched with: likely ones, whatever rank or place they are at."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Constants of SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) as signed numbers.
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
#: Random bits of a uniform number that float32 holds exactly, with a half below the last of them.
_BITS = 23


@torch.no_grad()
def draw_hard_negatives(
    logits_PM: Tensor, texts_P: Tensor, images_M: Tensor, offset: int, count: int
) -> Tensor:
    """For each text ``count`` different images other than its own, drawn by the softmax of their logits.

    Drawn without replacement, as the greatest of logits with Gumbel noise. The noise of a text and an image
    is hashed from their two seeds, so that a draw is the same wherever the two stand in the global batch, on
    any number of ranks, and asks the device for nothing.

    Args:
        logits_PM: [P, M] logits of this rank's P texts with the M images of all ranks.
        texts_P: [P] int64, seeds of the texts.
        images_M: [M] int64, seeds of the images.
        offset: The image that belongs to text 0.
        count: Images a text, below M.

    Returns:
        [P, count] int64, numbers of the images, the likeliest draw first.
    """
    noisy_PM = logits_PM.float() + _gumbel(_mix(texts_P)[:, None] ^ images_M)
    noisy_PM.diagonal(offset).fill_(-math.inf)
    return noisy_PM.topk(count, dim=1).indices


def _gumbel(keys: Tensor) -> Tensor:
    """Standard Gumbel noise of int64 keys, float32."""
    uniform = (_shift(_mix(keys), 64 - _BITS).float() + 0.5) / 2**_BITS
    return -torch.log(-torch.log(uniform))


def _mix(keys: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 to int64, every bit of the one moving all of the other."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        keys = (keys ^ _shift(keys, shift)) * factor
    return keys ^ _shift(keys, 31)


def _shift(keys: Tensor, bits: int) -> Tensor:
    """Shift to the right as unsigned numbers; torch's shift repeats the sign."""
    return (keys >> bits) & (2 ** (64 - bits) - 1)
