"""What packing a batch for attention takes on the host: time and memory, linear in the tokens.

Run ``python benchmarks/packing.py`` (Linux; a minute). *documents* is what attention over nested tensors
needs, *block mask* what flex attention needs, *window* the same under a sliding window of 128, and
``create_block_mask`` is torch's own way to make it, which asks every pair of positions.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lcl_composer.models.attention import Packing

CPU = torch.device("cpu")


def documents(packing: Packing) -> object:
    """Bounds and numbers of the documents."""
    return packing.offsets, packing.documents


def block_mask(packing: Packing) -> object:
    """Our mask for flex attention."""
    return packing.block_mask(None)


def window(packing: Packing) -> object:
    """Our mask under a sliding window."""
    return packing.block_mask(128)


def torchs_mask(packing: Packing) -> object:
    """The same mask by torch's own function."""
    tokens, mask_mod = sum(packing.lengths), block_mask(packing).mask_mod
    return create_block_mask(mask_mod, None, None, tokens, tokens, device="cpu")


#: What is measured, and the most tokens it is tried with: torch's own takes 10 T^2 bytes.
WAYS: dict[str, tuple[Callable[[Packing], object], int]] = {
    "documents": (documents, 1 << 30),
    "block mask": (block_mask, 1 << 30),
    "window": (window, 1 << 30),
    "create_block_mask": (torchs_mask, 16_384),
}
TOKENS = (8_192, 16_384, 65_536, 262_144, 1_048_576)


def draw_lengths(tokens: int) -> list[int]:
    """Documents of 60 to 400 tokens, ``tokens`` in all."""
    lengths = np.random.default_rng(0).integers(60, 401, tokens // 60)
    count = int(np.searchsorted(lengths.cumsum(), tokens - 400))
    return [*lengths[:count].tolist(), int(tokens - lengths[:count].sum())]


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(name: str, tokens: int) -> tuple[float, float]:
    """Milliseconds, best of three, and MiB at most beyond what stood before the first."""
    lengths, make = draw_lengths(tokens), WAYS[name][0]
    make(Packing(draw_lengths(1024), CPU))  # what torch loads at first use
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back, or the peak would not show it
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, times = resident("VmRSS"), []
    for _ in range(3):
        packing, begin = Packing(lengths, CPU), time.perf_counter()
        make(packing)
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times), (resident("VmHWM") - before) / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    options = parser.parse_args()
    print("| tokens | documents of 60 to 400 | what | ms | MiB |\n|---|---|---|---|---|")
    torch.set_num_threads(1)
    for tokens in options.tokens:
        for name in (name for name, (_, most) in WAYS.items() if tokens <= most):
            milliseconds, mebibytes = measure(name, tokens)
            count = len(draw_lengths(tokens))
            print(f"| {tokens:,} | {count:,} | {name} | {milliseconds:.1f} | {mebibytes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
