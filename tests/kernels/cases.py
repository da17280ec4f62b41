"""Where the kernels' tests run, and the float64 references they are held to.

In a plain session the PyTorch twins run on the CPU; with TRITON_INTERPRET=1 the Triton kernels do, in the
interpreter (test_interpreted.py starts that session); on a machine with a GPU the kernels run on it too.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: (device, backend) pairs of this session.
PLACES = [("cpu", "triton" if INTERPRETED else "torch")]
if torch.cuda.is_available() and not INTERPRETED:
    PLACES.append(("cuda", "triton"))

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: Relative norm of a gradient's error against float64. The interpreter truncates to bfloat16, GPUs round.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3 if INTERPRETED else 3e-3}
#: The interpreter is slow, but its tiles are small: hypothesis examples, and tokens, vocabulary and width of
#: several ragged tiles each, the vocabulary in more than one pass of the backward.
EXAMPLES = 6 if INTERPRETED else 60
SHAPE = (40, 140, 24) if INTERPRETED else (70, 301, 24)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, floor: float = 1e-7) -> None:
    """Hold a tensor to a float64 reference by the relative norm of the error; both may be zero."""
    found = found.detach().double().cpu()
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    error, size = (found - expected).norm().item(), expected.norm().item()
    assert error <= tolerance * size + floor, f"error {error:.3g} of {size:.3g}"


def leaves(*tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors as leaves, and as float64 leaves of the reference on the CPU."""
    return (
        [tensor.detach().clone().requires_grad_() for tensor in tensors],
        [tensor.detach().double().cpu().requires_grad_() for tensor in tensors],
    )


def compare(
    loss: Tensor,
    inputs: list[Tensor],
    reference: Tensor,
    reference_inputs: list[Tensor],
    tolerance: float,
    floor: float = 1e-7,
) -> None:
    """Hold a loss to 1e-5 and its gradients to ``tolerance`` (or ``floor``) of the float64 reference."""
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).reshape(loss.shape)
    assert_close(loss, reference.detach(), 1e-5, floor)
    found = torch.autograd.grad(loss, inputs, upstream.to(loss))
    expected = torch.autograd.grad(reference, reference_inputs, upstream)
    for got, want, leaf in zip(found, expected, inputs, strict=True):
        assert got.dtype == leaf.dtype
        assert_close(got, want, tolerance, floor)


def plain_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The op by its definition, with all logits [N, V]; a mean over no token is 0."""
    targets = targets.cpu()
    logits = hidden @ weight.T + (0.0 if bias is None else bias)
    losses = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    kept = targets != -100
    losses = torch.where(kept, losses + z_loss * logits.logsumexp(1).square(), 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / (max(int(kept.sum()), 1) if reduction == "mean" else 1)


def plain_info_nce(
    rows: Tensor, columns: Tensor, scale: Tensor, row_offset: int = 0, mask: Tensor | None = None
) -> Tensor:
    """Mean symmetric InfoNCE by its definition, with all similarities [n, m]."""
    z = scale * (rows @ columns.T)
    if mask is not None:
        z = z.masked_fill(~mask, -1e300)
    index = torch.arange(rows.shape[0])
    losses = (z.logsumexp(1) + z.logsumexp(0)[row_offset + index]) / 2 - z[index, row_offset + index]
    if mask is not None:
        losses = losses[mask[row_offset + index]]
    return losses.sum() / max(losses.numel(), 1)


def plain_sigmoid_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_offset: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """The SigLIP loss by its definition, with all logits [n, m]."""
    n, m = rows.shape[0], columns.shape[0]
    mask = torch.ones(m, dtype=torch.bool) if mask is None else mask
    sign = -torch.ones(n, m, dtype=torch.float64)
    index = torch.arange(n)
    sign[index, row_offset + index] = 1.0
    losses = torch.nn.functional.softplus(-sign * (scale * (rows @ columns.T) + bias), threshold=60.0)
    return (losses * mask).sum() / max(int(mask[row_offset : row_offset + n].sum()), 1)
