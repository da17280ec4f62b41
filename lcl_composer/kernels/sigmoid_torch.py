"""Plain-PyTorch twin of the pairwise sigmoid loss: chunks of rows, one chunk's logits at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.kernels.backend import exact_half_products, upcast

#: Rows a chunk.
CHUNK = 512


def sweep(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    row_offset: int,
    with_gradients: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Return the summed loss and, if asked, (``G columns`` [n, D], ``G^T rows`` [m, D], ``sum G``).

    ``G_ij = sigmoid(z_ij) - pair`` is the gradient of the logit z; the factor scale is left to the caller.
    """
    columns = upcast(columns, dtype)
    loss = columns.new_zeros(())
    d_rows = columns.new_empty(rows.shape) if with_gradients else None
    d_columns = torch.zeros_like(columns)
    d_bias = columns.new_zeros(())
    buffer = columns.new_empty(min(CHUNK, rows.shape[0]), columns.shape[0])
    for start in range(0, rows.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        chunk = upcast(rows[part], dtype)
        with exact_half_products(dtype):
            z = torch.mm(chunk, columns.T, out=buffer[: chunk.shape[0]])
        z.mul_(scale.to(z.dtype)).add_(bias.to(z.dtype))
        own = slice(row_offset + start, row_offset + start + chunk.shape[0])
        diagonal = z[:, own].diagonal()
        diagonal.neg_()  # matching pairs count as softplus(-z), all others as softplus(z)
        losses = F.softplus(z, threshold=40.0)  # torch switches to the identity at 20: 2e-9 off in float64
        loss += (losses if mask is None else losses.masked_fill_(~mask, 0.0)).sum()
        if d_rows is None:
            continue
        z.sigmoid_()
        diagonal.neg_()
        if mask is not None:
            z.masked_fill_(~mask, 0.0)
        d_bias += z.sum()
        with exact_half_products(dtype):
            torch.mm(z, columns, out=d_rows[part])
            d_columns.addmm_(z.T, chunk)
    return loss, None if d_rows is None else (d_rows, d_columns, d_bias)
