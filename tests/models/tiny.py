"""A model of a few thousand parameters and batches of random documents that go through our own layout."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import Sample, bad_sample, collate, make_sample
from lcl_composer.data.document import Document, Image, Segment, Text
from lcl_composer.data.interleave import Interleaved, Layout, LayoutRules
from lcl_composer.methods.lcl import LCL
from lcl_composer.models.encoder import TimmEncoder
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler
from tests.data.layouts import NumberTokenizer

M = TypeVar("M")
IMAGE_SIZE, TOKENS_PER_IMAGE, WIDTH, EMBED_DIM, MAX_TOKENS = 16, 4, 24, 32, 40
TOKENIZER = NumberTokenizer(first_special=59)  # 64 ids
RULES = LayoutRules(TOKENS_PER_IMAGE, MAX_TOKENS)
INTERLEAVED = Interleaved(TOKENIZER, RULES)


def tiny_encoder() -> TimmEncoder:
    model_args = {"patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    return TimmEncoder("vit_base_patch32_clip_224", image_size=IMAGE_SIZE, model_args=model_args)


def tiny_language_model(model_type: str = "opt", **changes: Any) -> TransformersLM:
    sizes = {"hidden_size": EMBED_DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = {**sizes, "max_position_embeddings": MAX_TOKENS, **changes}
    return TransformersLM(TOKENIZER.vocab_size, model_type, **options)


def tiny_method(method: Callable[..., M], model_type: str = "opt", **options: Any) -> M:
    """A method around the networks that it takes, with random weights of seed 0, and its ``options``."""
    torch.manual_seed(0)
    networks = {
        "pooler": AttentivePooler(WIDTH, EMBED_DIM, num_heads=4),
        "language_model": tiny_language_model(model_type),
        "encoder": tiny_encoder(),
        "vocab_size": TOKENIZER.vocab_size,
    }
    taken = inspect.signature(method).parameters
    return method(**{name: part for name, part in networks.items() if name in taken}, **options)


def tiny_model(model_type: str = "opt", **options: Any) -> LCL:
    """An LCL with random weights of seed 0; ``options`` are those of LCL."""
    return tiny_method(LCL, model_type, **options)


def document(*segments: str | Image, name: str = "d") -> Document:
    """Texts are numbers set apart by blanks, images are ``IMAGE``."""
    return Document(name, "test", tuple(Text(s) if isinstance(s, str) else s for s in segments))


IMAGE = Image(b"")


def random_document(index: int, longest: int = 6) -> Document:
    """Up to five segments in any order: leading, adjacent and trailing images all occur."""
    rng = np.random.default_rng([3, index])
    segments: list[Segment] = [
        Image(b"")
        if rng.random() < 0.5
        else Text(" ".join(map(str, rng.integers(1, 59, rng.integers(1, longest)))))
        for _ in range(rng.integers(1, 6))
    ]
    return Document(f"random-{index}", "test", (*segments, Text("7")))


def random_pair(index: int) -> Document:
    """An image and one to eight words."""
    rng = np.random.default_rng([5, index])
    words = map(str, rng.integers(1, 59, rng.integers(1, 9)))
    return document(IMAGE, " ".join(words), name=f"d{index}")


def sample(row: Document, layout: Layout = INTERLEAVED, seed: int = 0) -> Sample:
    """A document laid out, with random uint8 pixels that depend on its id and ``seed``."""
    laid_out = layout(row, np.random.default_rng(0))
    if not len(laid_out.tokens):
        return bad_sample(row.id, "no text", IMAGE_SIZE)
    rng = np.random.default_rng([seed, *row.id.encode()])
    pixels = rng.integers(0, 256, (len(row.images), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    return make_sample(row.id, laid_out, torch.from_numpy(pixels[laid_out.images]))


def batch(rows: Sequence[Document], layout: Layout = INTERLEAVED) -> PackedBatch:
    return collate([sample(row, layout) for row in rows])


def random_batch(count: int, layout: Layout = INTERLEAVED) -> PackedBatch:
    return batch([random_document(i) for i in range(count)], layout)


def bad_batch(count: int) -> PackedBatch:
    """A batch of which every document was skipped."""
    return collate([bad_sample(f"bad-{i}", "test", IMAGE_SIZE) for i in range(count)])


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by name; raises if a parameter that is trained has none."""
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient: {missing}"
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
