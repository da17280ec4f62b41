"""Our training step against a padded one of the same weights, in one run and alternating.

    python benchmarks/step.py --workload paired
    python benchmarks/step.py --workload interleaved --data datasets/pages

A step is forward, backward and AdamW. The reference computes what the authors' code computes (see
padded_reference.py) with torch's default AdamW. Sizes are ViT-B/32 and its language model: batches of 16
pairs at context 128, or of 4 documents at context 2048. Both start from equal weights; their losses must
agree. Time is the median over alternating steps; peak memory is that of a fresh process each. Ours runs as
the recipe says: on interleaved documents the language model is checkpointed. ``--reference checkpointed``
compares with the reference under checkpointing of both towers, as the authors' MMC4 script has it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from padded_reference import PaddedLCL, pad
from torch import Tensor

from lcl_composer.build import build_optimizer, parameter_groups
from lcl_composer.config.compose import compose
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules, TokenLayout, lay_out
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.methods.build import build_model
from lcl_composer.methods.fast import make_fast
from lcl_composer.models.released import to_released

ROOT = Path(__file__).parent.parent
WORKLOADS = {"paired": ("vit_b32_laion", 16, 128), "interleaved": ("vit_b32_mmc4", 4, 2048)}
TOKENS_PER_IMAGE = 49
#: Quantiles (0, 10, ..., 100%) of words a caption of tuxpaint-stamps-default and, for gimp-help-en's pages,
#: of words and images a page, as `lcl convert` counts them.
CAPTION_WORDS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 18, 60)
PAGE_WORDS = (20, 90, 130, 175, 220, 270, 350, 480, 700, 1100, 4000)
PAGE_IMAGES = (1, 1, 1, 1, 2, 2, 2, 3, 4, 7, 40)


def draw(quantiles: tuple[int, ...], rng: np.random.Generator) -> int:
    """A whole number from the distribution with these deciles."""
    return round(float(np.interp(rng.random() * 10, range(11), quantiles)))


def synthetic_document(workload: str, index: int) -> Document:
    """A document of common words with the lengths and image counts of the real data."""
    rng = np.random.default_rng([17, index])
    words = [
        "the",
        "of",
        "picture",
        "with",
        "and",
        "shows",
        "a",
        "window",
        "layer",
        "colour",
        "tool",
        "image",
        "you",
        "can",
    ]

    def text(count: int) -> Text:
        return Text(" ".join(rng.choice(words, count)))

    if workload == "paired":
        return Document(str(index), "synthetic", (Image(b"", floats=True), text(draw(CAPTION_WORDS, rng))))
    images, count = draw(PAGE_IMAGES, rng), draw(PAGE_WORDS, rng)
    parts = [text(max(1, count // (images + 1))) for _ in range(images + 1)]
    segments = [segment for part in parts for segment in (part, Image(b""))][:-1]
    return Document(str(index), "synthetic", tuple(segments))


def read_documents(folder: str, count: int) -> list[Document]:
    """Documents spread evenly over the shards of a folder."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=folder, batch_size=1, shuffle=False)
    return [Document.from_record(dataset[int(i)]) for i in np.linspace(0, len(dataset) - 1, count, dtype=int)]


class Ours:
    """Packed batches through the model and optimizer of a recipe's YAML, its checkpointing included."""

    def __init__(self, workload: str):
        recipe, _, context = WORKLOADS[workload]
        overrides = ["data.train.local=unused", f"data.max_tokens={context}"]
        config = compose(ROOT / f"yamls/pretrain/{recipe}.yaml", overrides).run
        torch.manual_seed(0)
        self.model = build_model(config, CLIPTokenizer.vocab_size)
        make_fast(config, self.model, torch.device("cpu"))
        self.optimizer = build_optimizer(config, self.model)

    def batch(self, layouts: list[TokenLayout], pixels: Tensor) -> PackedBatch:
        """The packed batch of laid-out documents and their images [I, 3, H, W]."""
        parts = pixels.split([len(layout.images) for layout in layouts])
        pairs = enumerate(zip(layouts, parts, strict=True))
        return collate([make_sample(str(index), layout, images) for index, (layout, images) in pairs])

    def losses(self, batch: PackedBatch) -> Tensor:
        """Contrastive and generation loss [2], unweighted."""
        losses = self.model.loss(self.model(batch), batch)
        return torch.stack([losses["contrastive"], losses["generation"]])


class Padded:
    """Padded batches through the reference, with torch's default AdamW."""

    checkpointing = False

    def __init__(self, workload: str):
        self.tokenizer, self.context = CLIPTokenizer(), WORKLOADS[workload][2]
        self.model = PaddedLCL(224, 32, 12, 768, 512, self.context, self.tokenizer)
        ours = Ours(workload)
        self.model.load_state_dict(to_released(ours.model.state_dict()))
        self.model.visual.set_grad_checkpointing(self.checkpointing)
        self.model.text.set_grad_checkpointing(self.checkpointing)
        recipe = {name: ours.optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), **recipe)

    def batch(self, layouts: list[TokenLayout], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Padded ids [D, L] and images [I, 3, H, W]."""
        return pad(layouts, self.tokenizer, TOKENS_PER_IMAGE, self.context), pixels

    def losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Contrastive and generation loss [2], unweighted."""
        return torch.stack(self.model(*batch))


class PaddedCheckpointed(Padded):
    """The reference with both towers checkpointed, as the authors' MMC4 script asks for."""

    checkpointing = True


SIDES = {"ours": Ours, "padded": Padded, "checkpointed": PaddedCheckpointed}


def make_batches(workload: str, data: str | None, count: int) -> list[tuple[list[TokenLayout], Tensor]]:
    """Laid-out documents and random pixels of ``count`` batches; the same for both sides."""
    _, size, context = WORKLOADS[workload]
    total = size * count
    documents = (
        read_documents(data, total) if data else [synthetic_document(workload, i) for i in range(total)]
    )
    # The released rule for what takes part in L_con, so that both sides see the same pairs.
    rules = LayoutRules(TOKENS_PER_IMAGE, context, min_context_tokens=0)
    tokenizer, rng = CLIPTokenizer(), np.random.default_rng(17)
    layouts = [lay_out(document, tokenizer, rules, rng) for document in documents]
    generator, batches = torch.Generator().manual_seed(17), []
    for first in range(0, total, size):
        chosen = layouts[first : first + size]
        images = sum(len(layout.images) for layout in chosen)
        batches.append((chosen, torch.randn(images, 3, 224, 224, generator=generator)))
    return batches


def step(side: Any, batch: Any) -> tuple[Tensor, float]:
    """One training step: its losses [2] and its seconds."""
    start = time.perf_counter()
    losses = side.losses(batch)
    (0.1 * losses[0] + losses[1]).backward()
    side.optimizer.step()
    side.optimizer.zero_grad(set_to_none=True)
    return losses.detach(), time.perf_counter() - start


def peak_memory(arguments: argparse.Namespace, name: str) -> float:
    """Peak resident memory in GB of a fresh process that takes two steps of one side."""
    command = [sys.executable, __file__, "--workload", arguments.workload, "--only", name]
    command += ["--data", arguments.data] if arguments.data else []
    # glibc keeps freed blocks below a growing size; with a fixed one the peak is that of live tensors.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1])


def run_one(arguments: argparse.Namespace) -> None:
    """Take a step on each of two batches and print the process's peak memory in GB."""
    side = SIDES[arguments.only](arguments.workload)
    for layouts, pixels in make_batches(arguments.workload, arguments.data, 2):
        step(side, side.batch(layouts, pixels))
    # Not getrusage: its peak is inherited from the parent that started this process.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)


def compare(arguments: argparse.Namespace) -> None:
    """Alternate steps of both sides; print times, memories and their ratios."""
    sides = {name: SIDES[name](arguments.workload) for name in ("ours", arguments.reference)}
    batches = make_batches(arguments.workload, arguments.data, arguments.steps + 1)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, (layouts, pixels) in enumerate(batches):
        results = {name: step(side, side.batch(layouts, pixels)) for name, side in sides.items()}
        (ours, _), (theirs, _) = results.values()
        # Rounding drives the weights apart once they are trained; the first step compares equal weights.
        torch.testing.assert_close(ours, theirs, rtol=5e-3 if number else 1e-5, atol=1e-5)
        for name, (_, taken) in results.items():
            seconds[name] += [taken] if number else []  # the first step warms up
        packed, times = sum(len(layout.tokens) for layout in layouts), [t for _, t in results.values()]
        print(f"step {number}: {packed} packed tokens, {len(pixels)} images", end=", ")
        print(f"losses {ours.tolist()}, seconds {times}", flush=True)
    del sides
    print(f"{arguments.workload}: {arguments.steps} steps, {torch.get_num_threads()} threads")
    report("time", "s", {name: statistics.median(values) for name, values in seconds.items()})
    report("peak memory", "GB", {name: peak_memory(arguments, name) for name in seconds})


def report(what: str, unit: str, values: dict[str, float]) -> None:
    """Print a figure of both sides and its ratio."""
    shown = ", ".join(f"{name} {value:.2f} {unit}" for name, value in values.items())
    ours, theirs = values.values()
    print(f"{what:12s} {shown}, ratio {ours / theirs:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--data", help="a folder of MDS documents instead of synthetic ones")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--reference", choices=("padded", "checkpointed"), default="padded")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run_one(options) if options.only else compare(options)
