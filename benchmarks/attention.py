"""Packed attention, forward and backward, by every way that torch has: time and memory.

    python benchmarks/attention.py                          # on a GPU: 8k to 262k tokens
    python benchmarks/attention.py --device cpu --tokens 2048

Documents have 60 to 400 tokens. *nested* is what packed batches run on CUDA, *flex* what they run there
with a window or softcap, *varlen* torch's own function for packed batches (2.10 on), *a document at a time*
what they run on the CPU, and *padded* one dense batch of the longest document. Each is first held to
float32 attention a document at a time; one that fails is named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernels import extra_megabytes, milliseconds
from benchmarks.packing import draw_lengths
from lcl_composer.models import attention
from lcl_composer.models.attention import Packing

#: Layers of a ViT-B/16 recipe's language model.
HEADS, WIDTH = 12, 64
SCALE = WIDTH**-0.5
#: Relative norms of errors that pass, of the output and of the gradients.
BOUND = {torch.bfloat16: 2e-2, torch.float32: 2e-3}

#: [1, H, T, d] three times, and the packing -> [1, T, H, d].
Attend = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]


def nested(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """SDPA over nested tensors."""
    return attention._nested_attention(query, key, value, packing, SCALE)


def flex(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """Flex attention with the mask from lengths."""
    return attention._flex_packed_attention(query, key, value, packing, SCALE, None, None)


def flex_uncompiled(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """The same by flex attention's own formula, which forms all scores: to try the mask on a CPU."""
    output = flex_attention(query, key, value, block_mask=packing.block_mask(None), scale=SCALE)
    return output.transpose(1, 2)


def varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """torch.nn.attention.varlen, causal, which a window of (-1, 0) means."""
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    flat = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]
    bounds, longest = packing.offsets.int(), max(packing.lengths)
    return varlen_attn(*flat, bounds, bounds, longest, longest, scale=SCALE, window_size=(-1, 0)).unsqueeze(0)


def by_document(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """SDPA a document at a time."""
    parts = zip(*(x.split(packing.lengths, 2) for x in (query, key, value)), strict=True)
    outputs = [F.scaled_dot_product_attention(*qkv, is_causal=True, scale=SCALE) for qkv in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def padded(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """One dense batch, padded to its longest document."""
    rows = [
        torch.nn.utils.rnn.pad_sequence(
            list(x.squeeze(0).transpose(0, 1).split(packing.lengths)), batch_first=True
        )
        for x in (query, key, value)
    ]
    dense = (x.transpose(1, 2) for x in rows)
    output = F.scaled_dot_product_attention(*dense, is_causal=True, scale=SCALE).transpose(1, 2)
    parts = zip(output, packing.lengths, strict=True)
    return torch.cat([row[:length] for row, length in parts]).unsqueeze(0)


WAYS: dict[str, dict[str, Attend]] = {
    "cuda": {"nested": nested, "flex": flex, "varlen": varlen, "padded": padded},
    "cpu": {"flex, uncompiled": flex_uncompiled, "padded": padded},
}


def make_inputs(tokens: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as a language model's projections leave them."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, tokens, HEADS, WIDTH)
    made = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3)]
    return [x.requires_grad_().transpose(1, 2) for x in made]


def both(attend: Attend, inputs: list[Tensor], packing: Packing) -> list[Tensor]:
    """Output and gradients."""
    output = attend(*inputs, packing)
    return [output, *torch.autograd.grad(output, inputs, torch.ones_like(output))]


def error(attend: Attend, device: str, dtype: torch.dtype) -> float:
    """The worst relative norm of output and gradients against float32, a document at a time."""
    lengths = [1, 5, 130, 3, 300]
    inputs, packing = make_inputs(sum(lengths), device, dtype), Packing(lengths, torch.device(device))
    exact = [x.detach().float().requires_grad_() for x in inputs]
    pairs = zip(both(attend, inputs, packing), both(by_document, exact, packing), strict=True)
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


def measure(
    attend: Attend, tokens: int, device: str, dtype: torch.dtype, rounds: int
) -> tuple[float, float, float]:
    """Milliseconds of forward and of forward and backward (medians), and megabytes beyond the inputs."""
    inputs, packing = make_inputs(tokens, device, dtype), Packing(draw_lengths(tokens), torch.device(device))
    memory = [extra_megabytes(lambda: both(attend, inputs, packing), device) for _ in range(2)][1]
    with torch.no_grad():
        forward = [milliseconds(lambda: attend(*inputs, packing), device) for _ in range(rounds)]
    whole = [milliseconds(lambda: both(attend, inputs, packing), device) for _ in range(rounds)]
    return statistics.median(forward), statistics.median(whole), memory


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if cuda else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8_192, 32_768, 65_536, 131_072, 262_144])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device, dtype = options.device, torch.bfloat16 if options.device == "cuda" else torch.float32
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; torch {torch.__version__}; {dtype}; {HEADS} heads of {WIDTH}\n")
    print("| tokens | way | error | forward, ms | forward + backward, ms | extra memory, MB |")
    print("|---|---|---|---|---|---|")
    for tokens in options.tokens:
        for name, attend in {**WAYS[device], "a document at a time": by_document}.items():
            try:
                wrong = error(attend, device, dtype)
                if wrong > BOUND[dtype]:
                    raise ArithmeticError(f"error {wrong:.1e}")
                forward, whole, memory = measure(attend, tokens, device, dtype, options.rounds)
            except Exception as failure:  # one way's failure must not end the comparison
                reason = " ".join(str(failure).split())[:80]
                print(f"| {tokens:,} | {name} | {type(failure).__name__}: {reason} | | | |", flush=True)
                continue
            figures = f"{wrong:.0e} | {forward:.2f} | {whole:.2f} | {memory:.0f}"
            print(f"| {tokens:,} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
