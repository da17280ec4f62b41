"""Samples to packed batches, batches to microbatches, and what Composer counts in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from lcl_composer.data.batch import PackedBatch, count_totals, find_places, find_spans
from lcl_composer.data.interleave import TokenLayout


class Sample(TypedDict):
    """One document, laid out and with its images decoded. T tokens, I images."""

    id: str
    tokens: np.ndarray  # [T] int64
    targets: np.ndarray  # [T] int64
    image_starts: np.ndarray  # [I] int64; position in this document or -1
    anchors: np.ndarray  # [I] int64; position in this document or -1
    seeds: np.ndarray  # [I] int64; 0 where the method draws nothing
    hidden_patches: np.ndarray  # [I, n] int64; n is 0 where the encoder sees all
    pixel_values: Tensor  # [I, 3, H, W] uint8, or [I, K, W] cached patch tokens
    problem: str  # why the sample is bad, empty if it is not


def make_sample(document_id: str, layout: TokenLayout, pixel_values: Tensor) -> Sample:
    """Return the sample of a layout and the pixels [I, 3, H, W] of ``layout.images``."""
    return Sample(
        id=document_id,
        tokens=layout.tokens,
        targets=layout.targets,
        image_starts=layout.image_starts,
        anchors=layout.anchors,
        seeds=np.zeros_like(layout.images) if layout.seeds is None else layout.seeds,
        hidden_patches=_none_hidden(len(layout.images))
        if layout.hidden_patches is None
        else layout.hidden_patches,
        pixel_values=pixel_values,
        problem="",
    )


def bad_sample(document_id: str, problem: str, image_size: int, like: Tensor | None = None) -> Sample:
    """Return an empty sample: it counts as consumed, so that a resume finds its place, and trains nothing.

    ``like`` is what stands for images in the other samples of the batch; None: pixels.
    """
    empty = np.zeros(0, dtype=np.int64)
    pixels = torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8) if like is None else like[:0]
    return Sample(
        id=document_id,
        tokens=empty,
        targets=empty,
        image_starts=empty,
        anchors=empty,
        seeds=empty,
        hidden_patches=_none_hidden(0),
        pixel_values=pixels,
        problem=problem,
    )


def collate(samples: Sequence[Sample]) -> PackedBatch:
    """Pack D samples without padding.

    Bad samples stay as documents of zero tokens: D is always the number of samples consumed.
    """
    lengths = [len(s["tokens"]) for s in samples]
    bounds = np.cumsum([0, *lengths])
    cu_seqlens = torch.from_numpy(bounds.astype(np.int32))
    targets = _flat([s["targets"] for s in samples])
    anchors = _flat([_shift(s["anchors"], start) for s, start in zip(samples, bounds, strict=False)])
    starts = [_shift(s["image_starts"], start) for s, start in zip(samples, bounds, strict=False)]
    image_starts = _flat(starts)
    places = find_places(targets, anchors, image_starts)
    return PackedBatch(
        tokens=_flat([s["tokens"] for s in samples]),
        targets=targets,
        positions=_flat([np.arange(length) for length in lengths]),
        cu_seqlens=cu_seqlens,
        pixel_values=torch.cat([s["pixel_values"] for s in samples]),
        image_starts=image_starts,
        anchors=anchors,
        seeds=_flat([s["seeds"] for s in samples]),
        hidden_patches=_rows([s["hidden_patches"] for s in samples]),
        images_per_document=torch.tensor([len(s["pixel_values"]) for s in samples], dtype=torch.int64),
        lengths=lengths,
        **places._asdict(),
        spans=find_spans(places, image_starts, cu_seqlens),
        totals=count_totals(places, len(anchors), len(samples)),
        ids=[s["id"] for s in samples],
    )


def split_batch(batch: PackedBatch, microbatch_size: int | float) -> list[PackedBatch]:
    """Split a batch into microbatches of documents, each with its own images; ``totals`` stay the batch's.

    Args:
        batch: The device batch.
        microbatch_size: Documents a microbatch; the last one may have fewer.

    Returns:
        The microbatches, in order.

    Raises:
        ValueError: If the size is not a whole number above 0.
    """
    size = int(microbatch_size)
    if size != microbatch_size or size < 1:
        raise ValueError(f"microbatch_size = {microbatch_size} is not a whole number of documents above 0")
    documents = num_samples(batch)
    if size >= documents:
        return [batch]
    return [_slice(batch, first, min(first + size, documents)) for first in range(0, documents, size)]


def split_by_tokens(batch: PackedBatch, most: int, least_pieces: int = 1) -> list[PackedBatch]:
    """Split a batch into microbatches of neighbouring documents with at most so many tokens each.

    Args:
        batch: The device batch.
        most: Tokens of a microbatch; a longer document is one by itself.
        least_pieces: Microbatches to make at least, as other ranks need them; at most the documents.

    Returns:
        The microbatches, in order, none without a document; ``totals`` stay the batch's.
    """
    bounds = token_bounds(batch["lengths"], most, least_pieces)
    if len(bounds) == 1:
        return [batch]
    return [_slice(batch, first, last) for first, last in bounds]


def token_bounds(lengths: Sequence[int], most: int, least_pieces: int = 1) -> list[tuple[int, int]]:
    """First document of each microbatch and the one after its last; see :func:`split_by_tokens`.

    As few as there can be of neighbours; where more are asked for, the longest in two halves, and so on.
    """
    firsts, filled = [0], 0
    for number, length in enumerate(lengths):
        if filled + length > most and number > firsts[-1]:
            firsts.append(number)
            filled = 0
        filled += length
    bounds = list(zip(firsts, [*firsts[1:], len(lengths)], strict=True))
    while len(bounds) < min(least_pieces, len(lengths)):
        longest = max(range(len(bounds)), key=lambda i: bounds[i][1] - bounds[i][0])
        first, last = bounds[longest]
        bounds[longest : longest + 1] = [(first, (first + last) // 2), ((first + last) // 2, last)]
    return bounds


def num_samples(batch: PackedBatch) -> int:
    """Return the number of documents consumed, bad ones included: Composer resumes from this count."""
    return len(batch["ids"])


def num_tokens(batch: PackedBatch) -> int:
    """Return the number of positions that run through the language model, image slots included."""
    return len(batch["tokens"])


def _slice(batch: PackedBatch, first: int, last: int) -> PackedBatch:
    """Copy documents ``first:last``: Composer deep-copies microbatches, and of a view the whole batch."""
    start, stop = batch["cu_seqlens"][[first, last]].tolist()
    images_before = batch["images_per_document"].cumsum(0)
    image_start = int(images_before[first - 1]) if first else 0
    images = slice(image_start, int(images_before[last - 1]))
    cu_seqlens = batch["cu_seqlens"][first : last + 1] - start
    targets = batch["targets"][start:stop].clone()
    image_starts = _shift_tensor(batch["image_starts"][images], -start)
    anchors = _shift_tensor(batch["anchors"][images], -start)
    places = find_places(targets, anchors, image_starts)
    return PackedBatch(
        tokens=batch["tokens"][start:stop].clone(),
        targets=targets,
        positions=batch["positions"][start:stop].clone(),
        cu_seqlens=cu_seqlens,
        pixel_values=batch["pixel_values"][images].clone(),
        image_starts=image_starts,
        anchors=anchors,
        seeds=batch["seeds"][images].clone(),
        hidden_patches=batch["hidden_patches"][images].clone(),
        images_per_document=batch["images_per_document"][first:last].clone(),
        lengths=batch["lengths"][first:last],
        **places._asdict(),
        spans=find_spans(places, image_starts, cu_seqlens),
        totals=batch["totals"],
        ids=batch["ids"][first:last],
    )


def _none_hidden(images: int) -> np.ndarray:
    return np.zeros((images, 0), dtype=np.int64)


def _rows(arrays: Sequence[np.ndarray]) -> Tensor:
    """[I, n] of arrays [i, n]; one of a sample without images may be of another width."""
    return torch.from_numpy(np.concatenate([a for a in arrays if len(a)] or [_none_hidden(0)]))


def _flat(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64, copy=False))


def _shift(positions: np.ndarray, offset: int) -> np.ndarray:
    return np.where(positions >= 0, positions + offset, -1)


def _shift_tensor(positions: Tensor, offset: int) -> Tensor:
    return torch.where(positions >= 0, positions + offset, -1)
