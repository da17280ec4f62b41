"""What a training step keeps in memory, by recipe: counted on tensors without contents, no GPU used.

Run ``python benchmarks/step_memory.py`` for the tables in docs/gpu.md. Weights, gradients and AdamW's two
moments are 16 bytes a parameter, which FSDP cuts over the ranks. Activations are the distinct memory that
autograd keeps of a forward under autocast to bfloat16, what does not grow with the batch left out. Not
counted: the heads, buffers of kernels and collectives, what the allocator wastes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lcl_composer.config import compose
from lcl_composer.methods.build import build_model
from lcl_composer.methods.method import Method
from lcl_composer.models.blocks import blocks_of, recompute

YAMLS = Path(__file__).resolve().parents[1] / "yamls/pretrain"
VOCABULARY = 49_411
#: A recipe, and what a rank's batch of it holds: documents of the global batch over 8 ranks, images and text
#: tokens of each. Pairs have one image and 16 tokens; documents MMC4's means (arXiv 2304.06939).
RECIPES = {
    "vit_b32_mmc4": (128, 5.7, 426),
    "vit_b16_laion": (1024, 1, 16),
    "vit_b16_laion_mmc4": (128, 3.3, 221),
}
RANKS = 8
BYTES_PER_PARAMETER = 16
#: Lengths of the documents that a language model is counted on; images that an encoder is.
DOCUMENT, IMAGES = 256, 4


class Activations(NamedTuple):
    """Bytes kept for the backward."""

    image: float  # by the encoder
    token: float  # by the language model


class Memory(NamedTuple):
    """Of a recipe: parameters, tokens an image, and activations with no, half and all blocks recomputed."""

    parameters: int
    tokens_per_image: int
    activations: dict[str, Activations]


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of distinct memory, the model's own apart, that autograd keeps of a forward."""
    owned = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    found: dict[int, torch.UntypedStorage] = {}  # held: a storage that is freed gives its number away

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            found[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        output = forward()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in found.values())


def activations(model: Method) -> Activations:
    """What a further image and a further token keep."""
    model.eval()  # in training OPT draws a number and looks at it, and here it has no contents
    for block in (block for part in model.parts.values() for block in blocks_of(part)):
        block.train()
    encoder: Any = model.encoder
    language_model: Any = model.language_model
    side, width = encoder.image_size, language_model.hidden_size

    def images(count: int) -> int:
        pixels = torch.empty(count, 3, side, side, dtype=torch.uint8)
        return saved_bytes(model, lambda: encoder(pixels))

    def documents(count: int) -> int:
        embeddings = torch.empty(count * DOCUMENT, width, requires_grad=True)
        positions = torch.zeros(count * DOCUMENT, dtype=torch.int64)
        lengths = [DOCUMENT] * count
        return saved_bytes(model, lambda: language_model(embeddings, positions, lengths))

    return Activations(
        (images(2 * IMAGES) - images(IMAGES)) / IMAGES, (documents(2) - documents(1)) / DOCUMENT
    )


def measure(recipe: str) -> Memory:
    """Count one recipe."""
    run = compose(YAMLS / f"{recipe}.yaml", ["activation_checkpointing=null"]).run
    found: dict[str, Activations] = {}
    for name, every in {"none": 0, "half": 2, "all": 1}.items():
        with torch.device("meta"):
            model = build_model(run, VOCABULARY)
        for part in model.parts.values() if every else ():
            for block in blocks_of(part)[::every]:
                recompute(block)
        with FakeTensorMode(allow_non_fake_inputs=True):
            found[name] = activations(model.to_empty(device="cpu"))
    parameters = sum(p.numel() for p in model.parameters())
    return Memory(parameters, int(model.encoder.tokens_per_image), found)


def main() -> None:
    """Print both tables."""
    os.environ.setdefault("DATA_ROOT", "/data")
    measured = {recipe: measure(recipe) for recipe in RECIPES}
    print("| recipe | parameters | states, DDP | FSDP on 8 | blocks recomputed | an image | a token |")
    print("|---|---|---|---|---|---|---|")
    for recipe, memory in measured.items():
        states = BYTES_PER_PARAMETER * memory.parameters / 2**30
        for number, (name, kept) in enumerate(memory.activations.items()):
            size = f"{memory.parameters / 1e6:.0f}M | {states:.2f} GiB | {states / RANKS:.2f} GiB"
            head = f"`{recipe}` | {size}" if number == 0 else " | | | "
            print(f"| {head} | {name} | {kept.image / 2**20:.1f} MiB | {kept.token / 2**10:.0f} KiB |")
    print("\n| recipe | documents a rank | images | tokens | activations: none, half, all recomputed |")
    print("|---|---|---|---|---|")
    for recipe, (documents, each, words) in RECIPES.items():
        images = round(documents * each)
        tokens = round(documents * words) + images * (measured[recipe].tokens_per_image + 2)
        totals = [
            (images * kept.image + tokens * kept.token) / 2**30
            for kept in measured[recipe].activations.values()
        ]
        sizes = ", ".join(f"{total:.0f}" for total in totals)
        print(f"| `{recipe}` | {documents:,} | {images:,} | {tokens:,} | {sizes} GiB |")


if __name__ == "__main__":
    main()
