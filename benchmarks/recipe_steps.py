"""Whole training steps of a recipe on one card: ours, the padded reference, and open_clip's CLIP.

    python benchmarks/recipe_steps.py --recipe vit_b16_laion_mmc4
    python benchmarks/recipe_steps.py --recipe vit_b16_laion_mmc4 --dry-run      # on a CPU at a tiny size

A step moves a batch from pinned memory, runs forward and backward under autocast to bfloat16 and takes fused
AdamW's step; nothing is recomputed. *ours* is the recipe's model on packed documents, *compiled* the same
with its blocks compiled, *padded* what the authors' code computes (padded_reference.py): from equal weights
the losses of a batch must agree. *open_clip* is that library's own CLIP step, with the same encoder on as
many images, each with 77 tokens of text. A side that runs out of memory gets half the documents.

Documents are made up with the lengths of the recipe's data: MMC4's (balance.py) and captions of 16 tokens in
the mean. Images and tokens are those of the documents, padding left out; MFU is the operations that the
documents need on our side (models/flops.py; of open_clip its own, counted) over what the card could do in the
time. Shares of a step by part are the time between events at the parts' bounds, forward and backward
together; those by kind of kernel come from torch's profiler.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from composer.callbacks.speed_monitor import GPU_AVAILABLE_FLOPS
from torch import Tensor, nn
from torch.utils._pytree import tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recipe_sides import Made, OpenCLIP, Ours, Padded, Work, make, recipe_config

#: A recipe: documents a step, pairs of a caption and an image among them, open_clip's name of the encoder.
RECIPES = {
    "vit_b32_mmc4": (64, 0, "ViT-B-32"),
    "vit_b16_laion": (512, 512, "ViT-B-16"),
    "vit_b16_laion_mmc4": (64, 32, "ViT-B-16"),
    "vit_l14_laion_mmc4": (32, 16, "ViT-L-14"),
}
#: What ours may stand beside.
SIDES = ("compiled", "padded", "open_clip")
COLUMNS = "recipe, side | documents | images | tokens | ms a step | images/s | tokens/s | MFU | peak GB"
#: Kinds of kernels by their names, the first that fits.
KINDS = {
    "attention": r"flash|fmha|attention|sdpa",
    "fused losses": r"^_\w+_tiles|^_log_sum_exp|^_matmul",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|addmm|matmul|::mm|::bmm|wgrad|dgrad|convolution",
    "optimizer": r"multi_tensor|adam|foreach",
    "copies": r"memcpy|memset|copy_",
}


class Clock:
    """Moments on a device: events in its queue, or the time on a CPU."""

    def __init__(self, device: torch.device):
        self.on_cuda = device.type == "cuda"

    def now(self) -> Any:
        """A moment."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, first: Any, last: Any) -> float:
        """What lies between two moments."""
        if not self.on_cuda:
            return 1000 * (last - first)
        last.synchronize()
        return first.elapsed_time(last)


def step(side: Any, batch: Any, device: torch.device) -> Tensor:
    """One training step; its losses, on the device."""
    batch = tree_map(lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x, batch)
    with torch.autocast(device.type, torch.bfloat16):
        losses = side.losses(batch)
        total = losses[-1] + 0.1 * losses[:-1].sum()
    total.backward()
    side.optimizer.step()
    side.optimizer.zero_grad(set_to_none=True)
    return losses.detach()


class Marks:
    """Moments at which a step passes from one part to the next, forward and backward."""

    def __init__(self, clock: Clock):
        self.clock, self.moments = clock, list[tuple[str, Any]]()

    def mark(self, name: str) -> None:
        """What went before was of the part ``name``."""
        self.moments.append((name, self.clock.now()))

    def pass_on(self, tensor: Tensor, before: str, after: str) -> Tensor:
        """Mark the tensor's passing, and its gradient's the other way."""
        self.mark(before)
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self.mark(after))
        return tensor

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Watch a method of encoder, pooler and language model."""

        def embeddings(_module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return (self.pass_on(args[0], "pooler", "language model"), *args[1:]), kwargs

        encoder, language_model = model.encoder, model.language_model
        handles = [
            encoder.register_forward_hook(lambda _m, _i, o: self.pass_on(o, "encoder", "pooler")),
            language_model.register_forward_pre_hook(embeddings, with_kwargs=True),
            language_model.register_forward_hook(
                lambda _m, _i, o: self.pass_on(o, "language model", "heads and losses")
            ),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def shares(self) -> dict[str, float]:
        """Share of the time by part."""
        spent: Counter[str] = Counter()
        for (_, begin), (name, end) in zip(self.moments, self.moments[1:], strict=False):
            spent[name] += self.clock.milliseconds(begin, end)  # pyright: ignore[reportArgumentType]
        return {name: took / sum(spent.values()) for name, took in spent.items()}


def shares_by_part(side: Ours, batch: Any, device: torch.device) -> dict[str, float]:
    """A step's time by part."""
    marks = Marks(Clock(device))
    before = side.optimizer.register_step_pre_hook(lambda *_: marks.mark("encoder"))
    with marks.on(side.model):
        marks.mark("start")
        step(side, batch, device)
        marks.mark("optimizer")
    before.remove()
    return marks.shares()


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.I)), "the rest")


def shares_by_kind(side: Any, batch: Any, device: torch.device) -> dict[str, float]:
    """The device's time in a step by kind of kernel, and how long it did nothing."""
    on_cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_cuda else torch.profiler.ProfilerActivity.CPU
    clock = Clock(device)
    with torch.profiler.profile(activities=[activity]) as profile:
        begin = clock.now()
        step(side, batch, device)
        whole = clock.milliseconds(begin, clock.now())
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        took = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        spent[kind_of(event.key)] += took / 1000  # pyright: ignore[reportArgumentType]
    spent["no kernel"] = max(0, whole - sum(spent.values()))  # pyright: ignore[reportArgumentType]
    return {kind: took / sum(spent.values()) for kind, took in spent.most_common()}


class Figures(NamedTuple):
    """What a side took: a step's work in the mean, its milliseconds, peak bytes."""

    work: Work
    milliseconds: float
    peak: int


def measure(side: Any, batches: list[Made], rounds: int, device: torch.device) -> Figures:
    """Take steps over the batches in turn, after one on each; the median of ``rounds``."""
    pin = device.type == "cuda"
    ready = [side.batch(made) for made in batches]
    if pin:
        ready = tree_map(lambda x: x.pin_memory() if isinstance(x, Tensor) else x, ready)
        torch.cuda.reset_peak_memory_stats()
    for batch in ready:
        step(side, batch, device)
    clock, took = Clock(device), list[float]()
    for number in range(rounds * len(ready)):
        begin = clock.now()
        step(side, ready[number % len(ready)], device)
        took.append(clock.milliseconds(begin, clock.now()))
    peak = torch.cuda.max_memory_allocated() if pin else 0
    each = [statistics.median(took[number :: len(ready)]) for number in range(len(ready))]
    work = Work(*map(statistics.mean, zip(*map(side.work, batches), strict=True)))
    return Figures(work, statistics.mean(each), peak)


def row(name: str, figures: Figures, peak_flops: float | None) -> str:
    """A line of the table."""
    work, seconds = figures.work, figures.milliseconds / 1000
    mfu = f"{work.flops / seconds / peak_flops:.1%}" if peak_flops else "unknown"
    counts = f"{work.documents:.0f} | {work.images:.0f} | {work.tokens:,.0f}"
    speed = f"{figures.milliseconds:.1f} | {work.images / seconds:,.0f} | {work.tokens / seconds:,.0f}"
    return f"| {name} | {counts} | {speed} | {mfu} | {figures.peak / 2**30:.1f} |"


def card_flops() -> float | None:
    """Operations a second of this card in bfloat16, as its maker says; None for another."""
    name = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    known = {key: value["bf16"] for key, value in GPU_AVAILABLE_FLOPS.items() if "bf16" in value}
    if "h100" in name and "pcie" in name:
        return known["h100-pcie"]
    return next((known[key] for key in ("h200-sxm", "h100-sxm", "a100") if key.split("-")[0] in name), None)


def main() -> None:
    """Print the tables of one recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--beside", nargs="+", default=["padded", "open_clip"], choices=SIDES)
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry_run else "cuda")
    Recipe(options.recipe, options.dry_run, device).compare(options.beside, options.rounds)


class Recipe:
    """A recipe on a device: its batches and its sides, one after the other."""

    def __init__(self, name: str, dry_run: bool, device: torch.device):
        self.name, self.dry_run, self.device = name, dry_run, device
        self.documents, self.pairs, self.open_clip = RECIPES[name]
        if dry_run:
            self.documents, self.pairs = 4, min(self.pairs, 2)
        self.config = recipe_config(name, dry_run)

    def side(self, name: str, ours: Ours) -> Any:
        """A side, on the device."""
        if name == "compiled":
            compiled = recipe_config(self.name, self.dry_run, "compile={parts: [encoder, language_model]}")
            return Ours(compiled, self.device)
        if name == "padded":
            return Padded(self.config, self.device, ours)
        return OpenCLIP(self.open_clip, self.dry_run, self.device, ours)

    def batches(self, documents: int, tokens_per_image: int) -> list[Made]:
        """Two batches of so many documents."""
        pairs = self.pairs * documents // self.documents
        return [make(self.config, tokens_per_image, documents, pairs, seed) for seed in range(2)]

    def measure(self, side: Any, tokens_per_image: int, rounds: int) -> Figures:
        """A side's figures, on as many documents as fit."""
        documents = self.documents
        while True:
            try:
                return measure(side, self.batches(documents, tokens_per_image), rounds, self.device)
            except torch.OutOfMemoryError:
                if documents == 1:
                    raise
                documents //= 2
            side.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def check(self, ours: Ours, padded: Padded) -> None:
        """Compare the losses of both sides, from equal weights, on a few documents."""
        made = make(self.config, ours.model.encoder.tokens_per_image, 4, min(self.pairs, 2), 0)
        found = []
        for side in (ours, padded):
            batch = tree_map(lambda x: x.to(self.device) if isinstance(x, Tensor) else x, side.batch(made))
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
                found.append(side.losses(batch).float())
        torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)

    def compare(self, sides: list[str], rounds: int) -> None:
        """Print the table of the sides, then the shares of ours, which comes first."""
        ours = Ours(self.config, self.device)
        tokens_per_image = ours.model.encoder.tokens_per_image
        print(f"| {COLUMNS} |\n|{'---|' * (1 + COLUMNS.count('|'))}")
        if "padded" in sides:
            self.check(ours, Padded(self.config, self.device, ours))
        figures = self.measure(ours, tokens_per_image, rounds)
        print(row(f"{self.name}, ours", figures, card_flops()), flush=True)
        batch = ours.batch(self.batches(round(figures.work.documents), tokens_per_image)[0])
        shares = {
            "part": shares_by_part(ours, batch, self.device),
            "kernels": shares_by_kind(ours, batch, self.device),
        }
        ours.rest()
        for name in sides:
            figures = self.measure(self.side(name, ours), tokens_per_image, rounds)
            print(row(f"{self.name}, {name}", figures, card_flops()), flush=True)
        for what, found in shares.items():
            print(f"\n| {self.name}, ours, {what} | share of a step |\n|---|---|")
            print("\n".join(f"| {name} | {share:.1%} |" for name, share in found.items()))


if __name__ == "__main__":
    main()
