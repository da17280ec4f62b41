"""Floating-point operations of a training step, from the sizes of the packed batch itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.data.batch import PackedBatch

if TYPE_CHECKING:
    from lcl_composer.models.encoder import Encoder
    from lcl_composer.models.language_model import TransformersLM
    from lcl_composer.models.pooler import AttentivePooler
    from lcl_composer.models.text_encoder import TextEncoder


def encoder_flops(encoder: Encoder) -> int:
    """Operations of one image's forward, counted while the encoder runs on the meta device.

    It runs in eval mode, on all patches of a full-size image: patch dropout and smaller resolutions are not
    seen.
    """
    tensors = {name: t.to("meta") for name, t in [*encoder.named_parameters(), *encoder.named_buffers()]}
    pixels = torch.empty(1, 3, encoder.image_size, encoder.image_size, device="meta")
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(encoder, tensors, (pixels,))
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops()


def pooler_flops(pooler: AttentivePooler, tokens: int, batch: PackedBatch) -> int:
    """Operations of a batch's forward: values of all images, latents of the anchored, tokens of the read.

    Args:
        pooler: Width W to width E.
        tokens: Patch tokens K of an image.
        batch: The packed batch.
    """
    embed_dim, width = pooler.v.weight.shape
    values = 2 * tokens * width * embed_dim
    latent = 2 * tokens * (width * pooler.num_heads + embed_dim) + 2 * embed_dim**2
    slots = 2 * tokens * embed_dim**2
    paired, read = len(batch["paired"]), len(batch["read"])
    return len(batch["pixel_values"]) * values + paired * latent + read * slots


def language_model_flops(
    language_model: TransformersLM | TextEncoder, lengths: Sequence[int], causal: bool = True
) -> int:
    """Operations of a batch's forward: matrices a token, attention a document.

    A query at position t attends to t + 1 keys, or to all of its document; both its products with keys and
    with values count.

    Args:
        language_model: Its backbone's matrices, embeddings apart, are multiplied once a token.
        lengths: Tokens of each document.
        causal: Attention is causal.
    """
    backbone: Any = language_model.backbone  # without a head that a method put beside it
    config = backbone.config
    tables = (m.weight for m in backbone.modules() if isinstance(m, nn.Embedding))
    embeddings = {id(weight) for weight in tables}
    parameters = [p for p in backbone.parameters() if p.dim() == 2 and id(p) not in embeddings]
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    pairs = sum(length * (length + 1) // 2 if causal else length**2 for length in lengths)
    return (
        2 * sum(lengths) * sum(p.numel() for p in parameters) + 4 * pairs * width * config.num_hidden_layers
    )


def training_flops(forward: Mapping[str, int], trained: Collection[str]) -> int:
    """Operations of forward and backward, without what is computed twice to save memory.

    A backward costs a forward for the gradients of the weights and another for those of the inputs: three in
    all, as in PaLM (arXiv 2204.02311, appendix B). A part that is wholly frozen has no gradients of weights,
    and none of inputs where nothing before it is trained.

    Args:
        forward: Operations of the forward by part, in the order of the flow.
        trained: Parts of which something is trained.
    """
    total, trained_before = 0, False
    for part, flops in forward.items():
        trained_before = trained_before or part in trained
        total += flops * (1 + (part in trained) + trained_before)
    return total
