"""The formulas against torch's own counter on the real forward."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.models.flops import encoder_flops
from tests.models.tiny import EMBED_DIM, random_batch, tiny_encoder, tiny_model


@pytest.mark.parametrize("model_type", ["opt", "llama", "gpt2"])
def test_a_forward_is_what_torch_counts(model_type: str) -> None:
    model, batch = tiny_model(model_type).eval(), random_batch(6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = model(batch)
        outputs["hidden"] @ model.generation_head.weight.T
    lengths = batch["cu_seqlens"].diff().long()
    # torch counts whole score matrices, of which a causal kernel computes half; the pooler folds its query
    # into the keys once a batch
    above_diagonal = 4 * int((lengths * (lengths - 1) // 2).sum()) * EMBED_DIM * 2
    pooler = model.pooler
    query = 2 * pooler.q.weight.numel() + 2 * pooler.k.weight.numel()
    ours = sum(model.forward_flops(batch).values())
    # transformers 4 has the angles as a matrix product
    has_rotary = model_type == "llama" and transformers.__version__.startswith("4.")
    rotary = len(batch["tokens"]) * EMBED_DIM // 2 if has_rotary else 0
    assert ours + above_diagonal + query + rotary == counter.get_total_flops()


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = tiny_encoder().train()
    encoder.backbone.blocks[0].eval()
    one = encoder_flops(encoder)
    assert encoder.training
    assert not encoder.backbone.blocks[0].training
    assert {p.device.type for p in encoder.parameters()} == {"cpu"}
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(torch.zeros(3, 3, 16, 16, dtype=torch.uint8))
    assert 3 * one == counter.get_total_flops()


def test_what_is_frozen_costs_less() -> None:
    model, batch = tiny_model(), random_batch(4)
    parts = model.forward_flops(batch)
    whole = sum(parts.values())
    assert model.flops_per_batch(batch) == 3 * whole
    model.language_model.requires_grad_(False)
    assert model.flops_per_batch(batch) == 3 * whole - parts["language_model"]
    model.language_model.requires_grad_(True)
    model.encoder.requires_grad_(False)
    assert model.flops_per_batch(batch) == 3 * whole - 2 * parts["encoder"]
    model.pooler.requires_grad_(False)
    assert model.flops_per_batch(batch) == 3 * whole - 2 * (parts["encoder"] + parts["pooler"])
