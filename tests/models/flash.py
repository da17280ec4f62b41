"""FlashAttention's operators of variable length on a CPU, by a plain formula; says what they got."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nested._internal import sdpa
from torch.nn.attention import SDPBackend


class Call(NamedTuple):
    """What one forward was handed: the longest pieces of queries and keys, the heads' width, the mask."""

    longest: int
    longest_key: int
    width: int
    causal: bool


#: Queries, keys, values [1, H, T, d], lengths of the pieces of queries and of keys, scale to [1, T, H, d].
Formula = Callable[[Tensor, Tensor, Tensor, list[int], list[int], float], Tensor]


def flash_on_cpu(monkeypatch: pytest.MonkeyPatch, formula: Formula) -> Iterator[list[Call]]:
    """Install the operators, yield the calls of the forward, take them away."""
    calls: list[Call] = []

    def run(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, key_bounds: Tensor, scale: float) -> Tensor:
        flat = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return formula(*flat, bounds.diff().tolist(), key_bounds.diff().tolist(), scale).squeeze(0)

    def forward(q, k, v, bounds, key_bounds, longest, longest_key, dropout, causal, *_, scale):
        calls.append(Call(longest, longest_key, q.shape[-1], causal))
        assert dropout == 0
        assert bounds.dtype == key_bounds.dtype == torch.int32
        nothing = q.new_zeros(0)
        output = run(q, k, v, bounds, key_bounds, scale)
        return output, nothing, nothing.long(), nothing.long(), nothing

    def differentiate(upstream: Tensor, bounds: Tensor, key_bounds: Tensor, scale: float, *qkv: Tensor):
        inputs = [x.detach().requires_grad_() for x in qkv]
        return torch.autograd.grad(run(*inputs, bounds, key_bounds, scale), inputs, upstream)

    def backward(upstream, q, k, v, _output, _lse, bounds, key_bounds, *_, scale):
        with ThreadPoolExecutor(1) as fresh:  # this thread is below autograd
            return fresh.submit(differentiate, upstream, bounds, key_bounds, scale, q, k, v).result()

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    monkeypatch.setattr(sdpa, "_select_sdp_backend", lambda *_: SDPBackend.FLASH_ATTENTION)
    yield calls
    library._destroy()
