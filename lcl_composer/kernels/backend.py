"""Which implementation runs, and in which precision."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["torch", "triton"]
Reduction = Literal["mean", "sum", "none"]


def resolve_backend(device: torch.device | str, backend: str | None = None) -> Backend:
    """Say which implementation of the fused losses runs on ``device``.

    Args:
        device: where the tensors live.
        backend: ``"torch"`` or ``"triton"`` forces one; ``None`` takes Triton on CUDA and PyTorch elsewhere.

    Raises:
        ValueError: for an unknown name, or for ``"triton"`` where Triton is not installed.
    """
    has_triton = importlib.util.find_spec("triton") is not None
    if backend is None:
        return "triton" if torch.device(device).type == "cuda" and has_triton else "torch"
    if backend == "torch":
        return "torch"
    if backend != "triton":
        raise ValueError(f"unknown loss backend {backend!r}; choose 'torch', 'triton' or null")
    if not has_triton:
        raise ValueError(
            "loss backend 'triton' needs the triton package, which is not installed; use 'torch'"
        )
    return "triton"


def matmul_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype whose values enter the matrix products: autocast's where it is on, else the widest given."""
    device_type = tensors[0].device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, statistics and accumulators: float64 for float64, float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def upcast(tensor: Tensor, through: torch.dtype) -> Tensor:
    """``tensor`` rounded to the matmul dtype, held in its accumulation dtype (no copy in float32)."""
    return tensor.to(through).to(accumulation_dtype(through))


@contextlib.contextmanager
def exact_half_products(dtype: torch.dtype) -> Iterator[None]:
    """Let the twins' fp32 products use TF32 when every value came from a 16-bit dtype.

    bf16 (8 significant bits) and fp16 (11) are exact in TF32 (11), so the logits lose nothing on a GPU and
    the tensor cores are used. On CPU the switch has no effect.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before or dtype in (torch.float16, torch.bfloat16)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
