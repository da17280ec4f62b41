"""The implementations that benchmarks/kernels.py compares: ours, plain PyTorch, and published kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.kernels import info_nce, linear_cross_entropy, sigmoid_loss

#: A loss of the op's inputs, by name.
Contenders = dict[str, Callable[..., Tensor]]


def installed(package: str) -> bool:
    """Whether an optional package can be imported (extra ``bench``)."""
    return importlib.util.find_spec(package) is not None


def plain_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits [N, V] in float32, as a model would write it."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def plain_info_nce(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """All similarities [n, n], as OpenCLIP writes it."""
    logits = (rows @ columns.T).float() * scale
    labels = torch.arange(rows.shape[0], device=rows.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def plain_sigmoid(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """All logits [n, n], as OpenCLIP writes it."""
    logits = (rows @ columns.T).float() * scale + bias
    sign = 2.0 * torch.eye(rows.shape[0], device=rows.device) - 1.0
    return -F.logsigmoid(sign * logits).sum() / rows.shape[0]


def ours(op: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    """One of our ops on a backend."""
    return lambda *inputs: op(*inputs, backend=backend)


def contenders(op: str, device: str) -> Contenders:
    """Those of an op (``linear_ce``, ``info_nce``, ``sigmoid``) that can run here; ours come first."""
    fused, plain = {
        "linear_ce": (linear_cross_entropy, plain_cross_entropy),
        "info_nce": (info_nce, plain_info_nce),
        "sigmoid": (sigmoid_loss, plain_sigmoid),
    }[op]
    entries: Contenders = {"ours, triton": ours(fused, "triton")} if device == "cuda" else {}
    entries |= {"ours, torch": ours(fused, "torch"), "plain": plain}
    if device == "cuda":
        entries["torch.compile of plain"] = torch.compile(plain, dynamic=False)
        published = {
            "linear_ce": published_linear_ce,
            "info_nce": published_info_nce,
            "sigmoid": published_sigmoid,
        }
        entries |= published[op]()
    return entries


def published_linear_ce() -> Contenders:
    """torch's own (2.13 on), cut-cross-entropy, Liger with its default and with large chunks, and QuACK."""
    entries: Contenders = {}
    if hasattr(F, "linear_cross_entropy"):
        entries["torch native"] = F.linear_cross_entropy  # type: ignore[attr-defined]
    if installed("cut_cross_entropy"):
        entries["cut-cross-entropy"] = cut_cross_entropy("high")
        entries["cut-cross-entropy, no filter"] = cut_cross_entropy(None)
    if installed("liger_kernel"):
        entries["liger-kernel"] = liger(1)
        entries["liger-kernel, chunks x 16"] = liger(16)
    if installed("quack"):
        entries["quack, V padded"] = quack
    return entries


def published_info_nce() -> Contenders:
    """Inf-CL's kernel for one GPU."""
    return {"inf-cl": inf_cl} if installed("inf_cl") else {}


def published_sigmoid() -> Contenders:
    """siglip-kernel's choice for the card."""
    return {"siglip-kernel": siglip_kernel} if installed("siglip_kernel") else {}


# The imports stand in the calls: one that fails on this machine leaves out its contender, not the benchmark.


def cut_cross_entropy(filter_eps: str | None) -> Callable[..., Tensor]:
    """Apple's kernel, with its default filter of small gradients or without."""

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy as cce  # type: ignore[import-not-found]

        return cce(hidden, weight, targets, impl="cce", filter_eps=filter_eps)

    return call


def liger(budget: int) -> Callable[..., Tensor]:
    """Liger's function; ``budget`` is that of its chunks' logits, in multiples of N x D."""
    tail = [None, None, -100, 0.0, 0.0, "mean", None, False, None, False, False, False, None, None]

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        from liger_kernel.ops.fused_linear_cross_entropy import (  # type: ignore[import-not-found]
            LigerFusedLinearCrossEntropyFunction,
        )

        return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets, *tail, budget)[0]

    return call


def inf_cl(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Inf-CL (tf32) in both directions; D is a multiple of 256."""
    from inf_cl import cal_flash_loss  # type: ignore[import-not-found]

    there = cal_flash_loss(rows, columns, scale=scale).mean()
    return (there + cal_flash_loss(columns, rows, scale=scale).mean()) / 2


def quack(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """QuACK's chunked function (Hopper on), whose fast way wants V in multiples of 128.

    Each row of zeros adds e^0 to the normaliser: a user would have to train a padded vocabulary.
    """
    from quack.linear_cross_entropy import chunked_linear_cross_entropy  # type: ignore[import-not-found]

    return chunked_linear_cross_entropy(hidden, F.pad(weight, (0, 0, 0, -len(weight) % 128)), targets)


def siglip_kernel(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """siglip-kernel takes the logarithm of the scale."""
    from siglip_kernel import fused_siglip_loss  # type: ignore[import-not-found]

    return fused_siglip_loss(rows, columns, scale.log(), bias)
