"""Flex attention's block mask of packed documents, from their lengths alone.

``create_block_mask`` asks every pair of positions: its eager form takes 10 T^2 bytes. Here the host works out
the blocks that meet, in numpy, and the tables are as wide as the longest document, not as the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks

#: Positions of flex attention's blocks, its default.
BLOCK = 128


class BlockRanges(NamedTuple):
    """Which blocks of B meet which: a row of a table is a run of blocks. All int32 [B].

    A block of queries b reads the keys of ``[first, b]``, without a mask those of ``[full, b)``; a block of
    keys j is read by the queries of ``[j, last]``, without a mask by those of ``(j, full_last]``.
    """

    first: np.ndarray
    full: np.ndarray
    last: np.ndarray
    full_last: np.ndarray


def block_ranges(lengths: list[int], window: int | None = None) -> BlockRanges:
    """Blocks that meet under causal attention inside documents of these lengths (each >= 1).

    Args:
        lengths: Tokens of each document of the flat sequence.
        window: A query sees this many keys at most, its own included; None: all of its document.
    """
    bounds = np.cumsum([0, *lengths])
    blocks = np.arange(-(-bounds[-1] // BLOCK))
    begin = blocks * BLOCK
    document = np.searchsorted(bounds, begin, side="right") - 1
    start, end = bounds[document], bounds[document + 1]
    span = int(bounds[-1]) if window is None else window
    first = np.maximum(start, begin - span + 1) // BLOCK
    last = np.searchsorted(first, blocks, side="right") - 1
    # Only blocks that lie in one document throughout can do without a mask.
    whole = begin + BLOCK <= end
    full = np.where(whole, -(-np.maximum(start, begin + BLOCK - span) // BLOCK), blocks)
    full_last = np.where(whole, np.minimum(end // BLOCK - 1, blocks - 1 + span // BLOCK), blocks)
    ranges = (first, np.minimum(full, blocks), last, np.maximum(full_last, blocks))
    return BlockRanges(*(x.astype(np.int32) for x in ranges))


def packed_block_mask(lengths: list[int], document_T: Tensor, window: int | None = None) -> BlockMask:
    """The block mask of documents of these lengths; nothing waits for the device.

    Args:
        lengths: Tokens of each document, each >= 1, summing to T.
        document_T: [T] int32, the number of each position's document, on the device of the queries.
        window: As in :func:`block_ranges`.
    """
    ranges = block_ranges(lengths, window)
    blocks = np.arange(len(ranges.first), dtype=np.int32)
    # At least two columns: compilers take a size of 1 for a constant and compile anew.
    width = max(2, int((blocks - ranges.first).max()) + 1, int((ranges.last - blocks).max()) + 1)
    host = torch.from_numpy(np.stack(ranges))
    first_B, full_B, last_B, full_last_B = to_device(host, document_T.device).unbind()
    block_B = torch.arange(len(blocks), dtype=torch.int32, device=document_T.device)
    column_W = torch.arange(width, dtype=torch.int32, device=document_T.device)

    def run(begin_B: Tensor) -> Tensor:
        return (begin_B[:, None] + column_W).clamp(max=len(blocks) - 1)[None, None].contiguous()

    def with_diagonal(begin_B: Tensor, count_B: Tensor) -> Tensor:
        return torch.where(column_W < count_B[:, None], run(begin_B), block_B[:, None]).contiguous()

    before_B, after_B = full_B - first_B, last_B - full_last_B  # blocks that need the mask, but the diagonal

    return BlockMask(
        seq_lengths=(len(document_T), len(document_T)),
        kv_num_blocks=(before_B + 1)[None, None],
        kv_indices=with_diagonal(first_B, before_B),
        full_kv_num_blocks=(block_B - full_B)[None, None],
        full_kv_indices=run(full_B),
        q_num_blocks=(after_B + 1)[None, None],
        q_indices=with_diagonal(full_last_B + 1, after_B),
        full_q_num_blocks=(full_last_B - block_B)[None, None],
        full_q_indices=run(block_B + 1),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=_mask_mod(document_T, window),
    )


def _mask_mod(document_T: Tensor, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Which pairs of positions meet, as flex attention asks for it."""

    def causal_in_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_T[query] == document_T[key])

    if window is None:
        return causal_in_document
    return and_masks(causal_in_document, lambda batch, head, query, key: query - key < window)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy without a wait of the host: only from pinned memory does CUDA copy on its own."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
