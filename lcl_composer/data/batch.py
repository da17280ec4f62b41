"""The packed batch: one flat token buffer and one flat image tensor, no padding."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

#: ``targets`` value of a position that no generation loss sees.
IGNORE = -100

#: Names of what losses are averaged over, see :func:`count_totals`.
TOTALS = ("documents", "targets", "images", "pairs", "read_images")


class PackedBatch(TypedDict):
    """What the collator yields and the model takes.

    D documents, T tokens, I images. ``tokens`` stands first: Composer asks the first value of a dict
    batch for its length. Composer's device transfer and deep copy work on tensors and lists unchanged. What
    the model would have to ask the device for, counts and places, comes along: as lists, which stay on the
    host, and as indices.
    """

    tokens: Tensor  # [T] int64; LM inputs, image slots hold <img_placehold>
    targets: Tensor  # [T] int64; the token that position t predicts, or IGNORE
    positions: Tensor  # [T] int64; restart at 0 in each document
    cu_seqlens: Tensor  # [D + 1] int32; document d is tokens[cu_seqlens[d]:cu_seqlens[d + 1]]
    pixel_values: Tensor  # [I, 3, H, W] uint8 (normalised on the device) or float (already normalised), or
    #                       [I, K, W] patch tokens of a frozen encoder, from a cache
    image_starts: Tensor  # [I] int64; flat position of the image's first token, -1: no loss sees its tokens
    anchors: Tensor  # [I] int64; flat position of its <start_of_img>, -1: takes no part in L_con
    seeds: Tensor  # [I] int64; what a method draws from on the device: keyed on seed, epoch and document
    hidden_patches: Tensor  # [I, n] int64; numbers of an image's n patches that the encoder must not see
    images_per_document: Tensor  # [D] int64; sums to I
    lengths: list[int]  # [D] tokens of each document; a bad one has 0
    predicting: Tensor  # [N] int64; positions whose target is not IGNORE
    paired: Tensor  # [P] int64; numbers of the images with an anchor
    read: Tensor  # [R] int64; numbers of the images with a start
    spans: list[int]  # [R] tokens from each one's start to the next one's or to the end of its document
    totals: dict[str, Tensor]  # 0-dim int64; counts of the device batch (not microbatch), see count_totals
    ids: list[str]  # [D] document ids


def without_pairs(batch: PackedBatch) -> PackedBatch:
    """The batch for a step that contrasts nothing: no pair, and of the images only those that are read.

    Tokens, counts and ``images_per_document`` stay.
    """
    read = batch["read"]
    return {
        **batch,
        "pixel_values": batch["pixel_values"].index_select(0, read),
        "image_starts": batch["image_starts"].index_select(0, read),
        "anchors": torch.full_like(read, -1),
        "paired": batch["paired"][:0],
        "read": torch.arange(len(read), device=read.device),
    }


class Places(NamedTuple):
    """Indices of what the losses read, as in :class:`PackedBatch`."""

    predicting: Tensor
    paired: Tensor
    read: Tensor


def find_places(targets: Tensor, anchors: Tensor, image_starts: Tensor) -> Places:
    """Find them on the host, where it costs no wait for a device."""
    found = (targets != IGNORE, anchors >= 0, image_starts >= 0)
    return Places(*(mask.nonzero().squeeze(1) for mask in found))


def find_spans(places: Places, image_starts: Tensor, cu_seqlens: Tensor) -> list[int]:
    """Tokens from each read image's start to the next one's or the end of its document; on the host."""
    starts_R = image_starts[places.read]
    ends_R = cu_seqlens[torch.searchsorted(cu_seqlens, starts_R.to(cu_seqlens.dtype), right=True)]
    next_R = torch.cat([starts_R, cu_seqlens[-1:]])[1:]
    return (torch.minimum(ends_R, next_R) - starts_R).tolist()


def count_totals(places: Places, images: int, documents: int) -> dict[str, Tensor]:
    """Return what losses are averaged over, each 0-dim int64.

    ``documents``; ``targets``, positions that predict; ``images``, those encoded; ``pairs``, those that are
    contrasted with a text; ``read_images``, those whose tokens run through the language model.
    """
    counts = (documents, len(places.predicting), images, len(places.paired), len(places.read))
    return {name: torch.tensor(count) for name, count in zip(TOTALS, counts, strict=True)}
