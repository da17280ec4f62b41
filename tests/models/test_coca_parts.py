"""CoCa's pooler and decoder against OpenCLIP's for the same weights."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import AttentionalPooler as TheirPooler
from open_clip.transformer import MultimodalTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.models.attentional_pooler import AttentionalPooler
from lcl_composer.models.multimodal_decoder import MultimodalDecoder

WIDTH, EMBED_DIM, HEADS = 24, 32, 4


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def copy_linear(ours: nn.Module, weight: Tensor, bias: Tensor) -> None:
    ours.load_state_dict({"weight": weight, "bias": bias})


def test_the_pooler_is_open_clips() -> None:
    torch.manual_seed(0)
    theirs = TheirPooler(EMBED_DIM, WIDTH, n_head=HEADS, n_queries=3)
    ours = AttentionalPooler(3, WIDTH, EMBED_DIM, HEADS)
    randomise(theirs)
    biases = theirs.attn.in_proj_bias.chunk(3)
    for name, bias in zip("qkv", biases, strict=True):
        copy_linear(getattr(ours, name), getattr(theirs.attn, f"{name}_proj_weight"), bias)
    for mine, other in (
        (ours.out, theirs.attn.out_proj),
        (ours.norm_q, theirs.ln_q),
        (ours.norm_k, theirs.ln_k),
    ):
        mine.load_state_dict(other.state_dict())
    ours.query.data.copy_(theirs.query)
    tokens = torch.randn(5, 7, WIDTH)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-5, atol=1e-5)


def test_the_decoder_is_open_clips_without_its_first_feed_forward() -> None:
    torch.manual_seed(0)
    theirs = MultimodalTransformer(EMBED_DIM, layers=2, heads=HEADS, context_length=9, output_dim=6)
    ours = MultimodalDecoder(EMBED_DIM, 2, HEADS)
    randomise(theirs)
    for layer, first, second in zip(ours.layers, theirs.resblocks, theirs.cross_attn, strict=True):
        nn.init.zeros_(first.mlp.c_proj.weight)
        nn.init.zeros_(first.mlp.c_proj.bias)
        copy_linear(layer.self_attention.qkv, first.attn.in_proj_weight, first.attn.in_proj_bias)
        weights, biases = (x.chunk(3) for x in (second.attn.in_proj_weight, second.attn.in_proj_bias))
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            copy_linear(getattr(layer.cross_attention, name), weight, bias)
        pairs = (
            (layer.self_attention.norm, first.ln_1),
            (layer.self_attention.out, first.attn.out_proj),
            (layer.cross_attention.norm_q, second.ln_1),
            (layer.cross_attention.norm_kv, second.ln_1_kv),
            (layer.cross_attention.out, second.attn.out_proj),
            (layer.feed_forward.norm, second.ln_2),
            (layer.feed_forward.fc1, second.mlp.c_fc),
            (layer.feed_forward.fc2, second.mlp.c_proj),
        )
        for mine, other in pairs:
            mine.load_state_dict(other.state_dict())
    lengths, images = [4, 9, 1], torch.randn(3, 5, EMBED_DIM)
    texts = [torch.randn(length, EMBED_DIM) for length in lengths]
    outputs = ours(torch.cat(texts), lengths, images).split(lengths)
    for text, image, output in zip(texts, images, outputs, strict=True):
        expected = theirs(image[None], text[None])[0]
        found = theirs.ln_final(output) @ theirs.text_projection
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_a_document_every_parameter_has_a_gradient_of_zero() -> None:
    decoder, images = MultimodalDecoder(EMBED_DIM, 2, HEADS), torch.zeros(0, 5, EMBED_DIM)
    output = decoder(torch.zeros(0, EMBED_DIM), [], images)
    assert output.shape == (0, EMBED_DIM)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in decoder.parameters())


@pytest.mark.parametrize("lengths", [[4, 9, 1]])
def test_operations_are_what_torch_counts(lengths: list[int]) -> None:
    pooler, decoder = AttentionalPooler(3, WIDTH, EMBED_DIM, HEADS), MultimodalDecoder(EMBED_DIM, 2, HEADS)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        images = pooler(torch.randn(3, 7, WIDTH))
        decoder(torch.randn(sum(lengths), EMBED_DIM), lengths, images)
    queries = 2 * 3 * pooler.q.weight.numel()  # once a batch
    # torch counts whole score matrices, of which a causal kernel computes half
    above_diagonal = 4 * sum(n * (n - 1) // 2 for n in lengths) * EMBED_DIM * 2
    ours = pooler.flops(3, 7) + decoder.flops(lengths, 3)
    assert ours + queries + above_diagonal == counter.get_total_flops()
