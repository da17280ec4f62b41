"""Our training step against a padded one of the same weights, in one run and alternating.

    python benchmarks/step.py --workload paired
    python benchmarks/step.py --workload interleaved --data datasets/pages

A step is forward, backward and AdamW. The reference computes what the authors' code computes (see
padded_reference.py) with torch's default AdamW. Sizes are ViT-B/32 and its language model: batches of 16
pairs at context 128, or of 4 documents at context 2048. Both start from equal weights; their losses must
agree. Time is the median over alternating steps; peak memory is that of a fresh process each.
"""

from __future__ import annotations

import argparse
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

from lcl_composer.build import build_model, build_optimizer
from lcl_composer.config.compose import compose
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules, TokenLayout, lay_out
from lcl_composer.data.tokenizer import CLIPTokenizer
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
    from streaming import LocalDataset

    dataset = LocalDataset(folder)
    return [Document.from_record(dataset[i]) for i in np.linspace(0, len(dataset) - 1, count, dtype=int)]


class Ours:
    """Packed batches through the model and optimizer of a recipe's YAML."""

    def __init__(self, workload: str):
        recipe, _, context = WORKLOADS[workload]
        overrides = [
            "data.train.local=unused",
            f"data.max_tokens={context}",
            "model.encoder.gradient_checkpointing=false",
            "model.language_model.gradient_checkpointing=false",
        ]
        config = compose(ROOT / f"yamls/pretrain/{recipe}.yaml", overrides).run
        torch.manual_seed(0)
        self.model = build_model(config, CLIPTokenizer.vocab_size)
        self.optimizer = build_optimizer(config, self.model)

    def batch(self, layouts: list[TokenLayout], pixels: Tensor) -> PackedBatch:
        """The packed batch of laid-out documents and their images [I, 3, H, W]."""
        parts = pixels.split([len(layout.images) for layout in layouts])
        return collate(
            [make_sample(str(i), *pair) for i, pair in enumerate(zip(layouts, parts, strict=True))]
        )

    def losses(self, batch: PackedBatch) -> Tensor:
        """Contrastive and generation loss [2], unweighted."""
        losses = self.model.loss(self.model(batch), batch)
        return torch.stack([losses["contrastive"], losses["generation"]])


class Padded:
    """Padded batches through the reference, with torch's default AdamW."""

    def __init__(self, workload: str):
        self.tokenizer, self.context = CLIPTokenizer(), WORKLOADS[workload][2]
        self.model = PaddedLCL(224, 32, 12, 768, 512, self.context, self.tokenizer)
        self.model.load_state_dict(to_released(Ours(workload).model.state_dict()))
        recipe = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **recipe)

    def batch(self, layouts: list[TokenLayout], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Padded ids [D, L] and images [I, 3, H, W]."""
        return pad(layouts, self.tokenizer, TOKENS_PER_IMAGE, self.context), pixels

    def losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Contrastive and generation loss [2], unweighted."""
        return torch.stack(self.model(*batch))


SIDES = {"ours": Ours, "padded": Padded}


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
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


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
    sides = {name: side(arguments.workload) for name, side in SIDES.items()}
    batches = make_batches(arguments.workload, arguments.data, arguments.steps + 1)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, (layouts, pixels) in enumerate(batches):
        found = {}
        for name, side in sides.items():
            found[name], taken = step(side, side.batch(layouts, pixels))
            if number:  # the first step warms up
                seconds[name].append(taken)
        packed = sum(len(layout.tokens) for layout in layouts)
        print(
            f"step {number}: {len(pixels)} images, {packed} packed tokens, losses {found['ours'].tolist()}",
            flush=True,
        )
        # Weights drift apart by rounding once they are trained; the first step compares equal weights.
        torch.testing.assert_close(
            found["ours"], found["padded"], rtol=1e-5 if number == 0 else 5e-3, atol=1e-5
        )
    del sides
    times = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = [ours / padded for ours, padded in zip(seconds["ours"], seconds["padded"], strict=True)]
    memory = {name: peak_memory(arguments, name) for name in SIDES}
    print(f"{arguments.workload}: {arguments.steps} steps, {torch.get_num_threads()} threads")
    for what, unit, values, ratio in (
        ("time", "s", times, statistics.median(pairs)),
        ("peak memory", "GB", memory, memory["ours"] / memory["padded"]),
    ):
        ours, padded = values["ours"], values["padded"]
        print(f"{what:12s} ours {ours:.2f} {unit}, padded {padded:.2f} {unit}, ratio {ratio:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--data", help="a folder of MDS documents instead of synthetic ones")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run_one(options) if options.only else compare(options)
