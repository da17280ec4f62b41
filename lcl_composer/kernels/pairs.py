"""What the two contrastive ops share: checks, and which (row, column) pairs exist."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_check(
    rows: Tensor, columns: Tensor, scale: Tensor, row_offset: int, mask: Tensor | None, reduction: str
) -> None:
    """Check shapes: rows [n, D], columns [m, D], scale [], mask [m], the block inside the columns.

    Raises:
        ValueError: for what does not fit, with the shapes found.
    """
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(f"rows must be [n, D] and columns [m, D]; got {[*rows.shape]}, {[*columns.shape]}")
    if scale.ndim != 0:
        raise ValueError(f"scale must be a 0-dim tensor; got {[*scale.shape]}")
    if row_offset < 0 or row_offset + rows.shape[0] > columns.shape[0]:
        raise ValueError(
            f"rows {row_offset} to {row_offset + rows.shape[0]} do not lie within {columns.shape[0]} columns"
        )
    if mask is not None and (mask.shape != columns.shape[:1] or mask.dtype != torch.bool):
        raise ValueError(
            f"column_mask must be bool [m] = {[columns.shape[0]]}; got {mask.dtype} {[*mask.shape]}"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; choose 'mean' or 'sum'")


def pair_mask(n: int, columns: Tensor, row_offset: int, mask: Tensor | None) -> Tensor:
    """Bool [m]: the columns whose row is in the block of n rows and which are not masked."""
    own = torch.zeros(columns.shape[0], dtype=torch.bool, device=columns.device)
    own[row_offset : row_offset + n] = True
    return own if mask is None else own & mask


def count_pairs(rows: Tensor, row_offset: int, mask: Tensor | None) -> Tensor | int:
    """Number of pairs of the block, at least 1."""
    if mask is None:
        return max(rows.shape[0], 1)
    return mask[row_offset : row_offset + rows.shape[0]].sum().clamp(min=1)
