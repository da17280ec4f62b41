"""What large contrastive batches cost: the batch whole, in microbatches, and in microbatches with GradCache.

    python benchmarks/gradcache.py                        # ViT-S, 224 pixels, batches of 64, 256 and 1024
    python benchmarks/gradcache.py --batches 8 --micro 2 --size tiny --steps 2

A document is a caption of 32 tokens and the picture it announces, so that every image takes part in L_con and
the contrastive batch is the number of documents. A step is Composer's: forward, backward and AdamW under the
Trainer. Each case runs in a process of its own; time is the median of the steps after the first, memory the
peak above what the process held before its first step (on a GPU, what torch allocated). ``error`` is the
difference of the first step's gradient from that of the whole batch, relative to its norm, and for the worst
parameter; it is left out where the whole batch was not run (``--whole-up-to``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from composer import Algorithm, Callback, DataSpec, State, Trainer
from composer.loggers import Logger
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lcl_composer.algorithms.grad_cache import GradCache
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import collate, make_sample, num_samples, num_tokens, split_batch
from lcl_composer.data.interleave import TokenLayout
from lcl_composer.methods.lcl import LCL
from lcl_composer.models.encoder import TimmEncoder
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler

#: Side in pixels, patch, width of both towers, layers, heads.
SIZES = {"vit_s": (224, 16, 384, 12, 6), "tiny": (32, 16, 32, 2, 2)}
VOCAB, WORDS = 49_411, 32


def build(size: str) -> LCL:
    """Both towers of one size, as ViT-S/16 and a language model as wide and deep; seed 0."""
    side, patch, width, depth, heads = SIZES[size]
    torch.manual_seed(0)
    model_args = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    encoder = TimmEncoder("vit_small_patch16_224", side, model_args=model_args)
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    language_model = TransformersLM(VOCAB, **sizes, max_position_embeddings=WORDS + 2)
    return LCL(encoder, AttentivePooler(width, width, heads), language_model, VOCAB)


def make_batch(documents: int, side: int, seed: int) -> PackedBatch:
    """Documents of 32 words and ``<start_of_img>``; the image comes last, so no loss reads its slots."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(documents):
        tokens = np.append(rng.integers(0, VOCAB - 3, WORDS), VOCAB - 2)
        layout = TokenLayout(
            tokens=tokens,
            targets=np.append(tokens[1:], -100),
            images=np.zeros(1, dtype=np.int64),
            image_starts=np.full(1, -1),
            anchors=np.full(1, WORDS),
            cut_tokens=0,
            cut_images=0,
        )
        pixels = torch.from_numpy(rng.integers(0, 256, (1, 3, side, side), dtype=np.uint8))
        samples.append(make_sample(str(index), layout, pixels))
    return collate(samples)


class Batches(IterableDataset):
    """As many batches as asked for, made one at a time."""

    def __init__(self, documents: int, side: int, count: int):
        self.documents, self.side, self.count = documents, side, count

    def __iter__(self) -> Iterator[PackedBatch]:
        return (make_batch(self.documents, self.side, seed) for seed in range(self.count))

    def __len__(self) -> int:
        return self.count


class Measure(Callback):
    """Seconds of each step, memory before the first, and the gradients of the first."""

    def __init__(self, gradients: Path):
        self.gradients, self.seconds, self.before, self.start = gradients, [], 0.0, 0.0

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Note the memory held and start the clock; algorithms come at the next event."""
        if not self.seconds:
            self.before = memory("VmRSS")
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Keep the gradients of the first batch, off the clock."""
        if not self.seconds:
            named = state.model.named_parameters()
            save_file({n: p.grad.cpu().contiguous() for n, p in named if p.grad is not None}, self.gradients)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def memory(field: str) -> float:
    """A memory figure of this process in GB: ``VmRSS`` now or ``VmHWM`` at its peak; on a GPU, torch's."""
    if torch.cuda.is_available():
        of = {"VmRSS": torch.cuda.memory_allocated, "VmHWM": torch.cuda.max_memory_allocated}
        return of[field]() / 2**30
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 2**20


def run_one(options: argparse.Namespace) -> None:
    """Train a few steps of one case and print its figures as JSON."""
    documents, micro, algorithms = options.batches[0], options.micro, list[Algorithm]()
    if options.only == "whole":
        micro = documents
    elif options.only == "gradcache":
        algorithms = [GradCache()]
    model, measure = build(options.size), Measure(options.gradients)
    loader = DataLoader(Batches(documents, SIZES[options.size][0], options.steps + 1), batch_size=None)
    data = DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=num_samples,
        get_num_tokens_in_batch=num_tokens,
    )
    Trainer(
        model=model,
        train_dataloader=data,
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-4),
        algorithms=algorithms,
        callbacks=[measure],
        device_train_microbatch_size=micro,
        max_duration=f"{options.steps + 1}ba",
        precision="amp_bf16" if torch.cuda.is_available() else "fp32",
        progress_bar=False,
    ).fit()
    figures = {"seconds": statistics.median(measure.seconds[1:]), "memory": memory("VmHWM") - measure.before}
    print(json.dumps(figures))


def run_case(options: argparse.Namespace, documents: int, case: str, gradients: Path) -> dict[str, float]:
    """Figures of a case from a process of its own."""
    command = [sys.executable, __file__, "--only", case, "--batches", str(documents), "--size", options.size]
    command += ["--micro", str(options.micro), "--steps", str(options.steps), "--gradients", str(gradients)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case}, batch {documents}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def errors(got: dict[str, Tensor], whole: dict[str, Tensor]) -> tuple[float, float]:
    """Error of the gradient relative to its norm, and the largest of a parameter relative to its largest.

    Parameters of no gradient, such as the bias of attention's keys, are left out of the second.
    """
    difference = sum(float((got[n] - g).double().square().sum()) for n, g in whole.items())
    norm = sum(float(g.double().square().sum()) for g in whole.values())
    largest = max(float(g.abs().max()) for g in whole.values())
    seen = [n for n, g in whole.items() if float(g.abs().max()) > 1e-6 * largest]
    worst = max(float((got[n] - whole[n]).abs().max() / whole[n].abs().max()) for n in seen)
    return (difference / norm) ** 0.5, worst


def compare(options: argparse.Namespace) -> None:
    """Print a Markdown table of all cases."""
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    )
    print(f"{options.size}, microbatches of {options.micro}, {options.steps} steps, {where}\n")
    print("| batch | case | s a step | peak GB | negatives | error | of the worst parameter |")
    print("|--|--|--|--|--|--|--|")
    for documents in options.batches:
        with tempfile.TemporaryDirectory() as folder:
            files: dict[str, Path] = {}
            for case in ("whole", "microbatches", "gradcache"):
                if case == "whole" and documents > options.whole_up_to:
                    continue
                files[case] = Path(folder, f"{case}.safetensors")
                figures = run_case(options, documents, case, files[case])
                negatives = options.micro if case == "microbatches" else documents
                wrong = " | "
                if "whole" in files and case != "whole":
                    whole, worst = errors(load_file(files[case]), load_file(files["whole"]))
                    wrong = f"{whole:.1e} | {worst:.1e}"
                row = f"{figures['seconds']:.2f} | {figures['memory']:.2f} | {negatives} | {wrong}"
                print(f"| {documents} | {case} | {row} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--micro", type=int, default=16)
    parser.add_argument("--size", choices=SIZES, default="vit_s")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--whole-up-to", type=int, default=64, help="largest batch to run undivided")
    parser.add_argument("--only", choices=("whole", "microbatches", "gradcache"), help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run_one(arguments) if arguments.only else compare(arguments)
