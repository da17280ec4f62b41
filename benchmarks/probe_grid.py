"""What a whole grid of attention probes costs beside one head, on the features of one pass of an encoder.

    python benchmarks/probe_grid.py                     # 2,000 images; 50,000 with --images 50000

Features of 49 tokens, 384 wide (ViT-S/32 at 224 pixels), lie on disk in 16 bits, as ``feature_cache`` has
them. Timed in turn, on the same batches: one head, V-JEPA 2's grid of 20, and one head as it is published
(keys and values formed, ``nn.BatchNorm1d``); and the encoder's pass, on fewer images. Times are an image's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcl_composer.build import parameter_groups
from lcl_composer.data.features import FeatureFolder, FeatureViews, key_of
from lcl_composer.losses.classification import classification_loss
from lcl_composer.methods.classify import Classify

GRID = {"lr": [5e-3, 3e-3, 1e-3, 3e-4, 1e-4], "weight_decay": [0.01, 0.1, 0.4, 0.8]}
TOKENS, WIDTH, HEADS = 49, 384, 12
PART = 256


class Published(nn.Module):
    """AIM's probe as apple/ml-aim computes it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """[I, K, W] -> [1, I, C]."""
        x = self.bn(tokens.transpose(1, 2)).transpose(1, 2)
        query = self.query.expand(len(x), -1, -1)
        split = [t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (query, self.key(x), self.value(x))]
        pooled = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return self.head(pooled.mean(1))[None]


class Encoder(nn.Module):
    """As far as Classify looks at one whose features are cached."""

    width, tokens_per_image = WIDTH, TOKENS


def write_features(folder: Path, images: int) -> FeatureViews:
    """Random features of so many images, part by part."""
    cache = FeatureFolder(folder, {}, (TOKENS, WIDTH), "float16", -(-images // PART))
    for part in range(cache.parts):
        names = range(part * PART, min((part + 1) * PART, images))
        cache.write(part, torch.randn(len(names), TOKENS, WIDTH), [key_of(str(i), 0) for i in names])
    return FeatureViews([cache.open()])


def trainer(kind: str, classes: int) -> Callable[[Tensor, Tensor], None]:
    """A step of training on features [I, K, W] of images with these labels."""
    if kind == "published":
        plain = Published(classes)
        probe, groups = plain, [{"params": list(plain.parameters())}]
    else:
        names = tuple(map(str, range(classes)))
        grid = GRID if kind == "grid" else None
        model = Classify(Encoder(), names, HEADS, grid=grid)  # type: ignore[arg-type]
        probe, groups = model.probe, parameter_groups(model)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)

    def step(tokens: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        classification_loss(probe(tokens), labels, len(labels)).backward()
        optimizer.step()

    return step


def epoch(step: Callable[[Tensor, Tensor], None], views: FeatureViews, options: argparse.Namespace) -> float:
    """Seconds of an epoch in random order, with reading from disk."""
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    for rows in torch.randperm(options.images, generator=generator).split(options.batch):
        tokens = torch.cat([views.rows(str(row), [0], 0) for row in rows.tolist()]).float()
        step(tokens, rows % options.classes)
    return time.perf_counter() - started


@torch.no_grad()
def encoder_seconds(images: int) -> float:
    """Seconds an image of ViT-S/32's forward."""
    encoder = timm.create_model("vit_small_patch32_224", num_classes=0).eval()
    pixels = torch.randn(images, 3, 224, 224)
    encoder.forward_features(pixels)
    started = time.perf_counter()
    encoder.forward_features(pixels)
    return (time.perf_counter() - started) / images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10, help="of a probing, as the LCL paper's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder-images", type=int, default=32)
    options = parser.parse_args()
    kinds = ("one", "grid", "published")
    seconds: dict[str, list[float]] = {kind: [] for kind in (*kinds, "encoder")}
    with tempfile.TemporaryDirectory() as folder:
        views = write_features(Path(folder), options.images)
        steps = {kind: trainer(kind, options.classes) for kind in kinds}
        for _ in range(options.rounds):
            seconds["encoder"].append(encoder_seconds(options.encoder_images))
            for kind, step in steps.items():
                seconds[kind].append(epoch(step, views, options) / options.images)
    took = {kind: median(values) for kind, values in seconds.items()}
    print(f"{options.images} images x {TOKENS} x {WIDTH}, {options.classes} classes, batch {options.batch}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    for kind, label in (
        ("encoder", "one pass of the encoder"),
        ("one", "an epoch of one head"),
        ("grid", f"an epoch of {len(GRID['lr']) * len(GRID['weight_decay'])} heads"),
        ("published", "an epoch of one head as published"),
    ):
        print(f"{label:36}{1e3 * took[kind]:9.3f} ms an image")
    whole = {kind: took["encoder"] + options.epochs * took[kind] for kind in kinds}
    print(f"grid / one head, on features alone: {took['grid'] / took['one']:.2f}")
    print(f"grid / one head as published, on features alone: {took['grid'] / took['published']:.2f}")
    print(f"grid / one head, one pass and {options.epochs} epochs: {whole['grid'] / whole['one']:.2f}")
    print(f"grid / one head as published, the same: {whole['grid'] / whole['published']:.2f}")


if __name__ == "__main__":
    main()
