"""Plain-PyTorch twin of InfoNCE: chunks of rows, one chunk's similarities at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lcl_composer.kernels.backend import accumulation_dtype, exact_half_products, upcast

#: Rows a chunk.
CHUNK = 512

#: Similarity of a masked column. Finite, so that a fully masked row gives no NaN (its weight is 0).
MASKED = -1e30


def statistics(
    rows: Tensor, columns: Tensor, scale: Tensor, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of ``z = scale rows columns^T`` [n, m]; rows and columns have separate maxima.

    One maximum for a whole tile would underflow: at scale 100 similarities span 200, e^-200 = 0 in fp32.

    Returns:
        That of each row [n] and of each column [m] (-inf without rows).
    """
    columns = upcast(columns, dtype)
    row_lse = columns.new_empty(rows.shape[0])
    maximum = columns.new_full((columns.shape[0],), float("-inf"))
    sum_exp = torch.zeros_like(maximum)
    scratch = columns.new_empty(min(CHUNK, rows.shape[0]), columns.shape[0])
    for part, z in _similarities(rows, columns, scale, mask, dtype):
        exps = scratch[: z.shape[0]]
        row_max = z.amax(1, keepdim=True)
        torch.sub(z, row_max, out=exps).exp_()
        row_lse[part] = exps.sum(1).log_() + row_max.squeeze(1)
        new_max = torch.maximum(maximum, z.amax(0))
        sum_exp.mul_((maximum - new_max).exp_()).add_(z.sub_(new_max).exp_().sum(0))
        maximum = new_max
    return row_lse, maximum + sum_exp.log()


def gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    row_offset: int,
    row_lse: Tensor,
    column_lse: Tensor,
) -> tuple[Tensor, Tensor]:
    """``G columns`` [n, D] and ``G^T rows`` [m, D] in the accumulation dtype, without the factor scale / 2.

    ``G_ij = e^(z_ij - row_lse_i) + e^(z_ij - column_lse_j)``, less 2 where ``j = row_offset + i``: twice the
    gradient of the summed loss in ``z_ij``. A row or column without a loss has an LSE of inf, and its term
    vanishes.
    """
    columns = upcast(columns, dtype)
    d_rows = columns.new_empty(rows.shape)
    d_columns = torch.zeros_like(columns)
    scratch = columns.new_empty(min(CHUNK, rows.shape[0]), columns.shape[0])
    for part, z in _similarities(rows, columns, scale, mask, dtype):
        gradient = torch.sub(z, column_lse, out=scratch[: z.shape[0]]).exp_()  # [C, m]
        gradient.add_(z.sub_(row_lse[part].unsqueeze(1)).exp_())
        own = slice(row_offset + part.start, row_offset + part.start + z.shape[0])
        gradient[:, own].diagonal().sub_(2.0 * torch.isfinite(row_lse[part]))
        with exact_half_products(dtype):
            torch.mm(gradient, columns, out=d_rows[part])
            d_columns.addmm_(gradient.T, upcast(rows[part], dtype))
    return d_rows, d_columns


def _similarities(rows: Tensor, columns: Tensor, scale: Tensor, mask: Tensor | None, dtype: torch.dtype):
    """Yield (slice of rows, their scaled similarities [C, m] in one reused buffer)."""
    factor = scale.to(accumulation_dtype(dtype))
    buffer = columns.new_empty(min(CHUNK, rows.shape[0]), columns.shape[0])
    for start in range(0, rows.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        chunk = upcast(rows[part], dtype)
        with exact_half_products(dtype):
            # The scale multiplies the logits, not the rows: scaled rows would be rounded to TF32 on a GPU.
            z = torch.mm(chunk, columns.T, out=buffer[: chunk.shape[0]]).mul_(factor)
        if mask is not None:
            z.masked_fill_(~mask, MASKED)
        yield part, z
