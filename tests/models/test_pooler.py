from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.models.pooler import AttentivePooler


def plain(pooler: AttentivePooler, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Multi-head cross-attention as it is written down: latent [I, E] and weights [I, heads, K]."""
    query = pooler.q(pooler.norm_q(pooler.query)).expand(len(tokens), 1, -1)
    key, value = pooler.k(pooler.norm_k(tokens)), pooler.v(pooler.norm_v(tokens))
    q, k, v = (x.unflatten(-1, (pooler.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return pooler.proj((weights @ v).transpose(1, 2).flatten(1)), weights.squeeze(2)


@pytest.fixture
def pooler() -> AttentivePooler:
    """Norms and biases too are random, so that none can be left out unseen."""
    torch.manual_seed(0)
    pooler = AttentivePooler(24, 32, num_heads=4)
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return pooler


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)


def test_folded_attention_equals_the_plain_formula(pooler: AttentivePooler, tokens: Tensor):
    latent, weights = plain(pooler, tokens)
    torch.testing.assert_close(pooler(tokens), latent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooler.attention(tokens), weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooler.attention(tokens).sum(-1), torch.ones(5, 4))


def test_gradients_equal_the_plain_formula(pooler: AttentivePooler, tokens: Tensor):
    upstream = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    inputs = {"tokens": tokens, **dict(pooler.named_parameters())}
    ours = torch.autograd.grad(pooler(tokens), list(inputs.values()), upstream)
    theirs = torch.autograd.grad(plain(pooler, tokens)[0], list(inputs.values()), upstream)
    for name, a, b in zip(inputs, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_language_model_tokens_are_the_projected_values(pooler: AttentivePooler, tokens: Tensor):
    expected = F.linear(pooler.v(pooler.norm_v(tokens)), pooler.proj.weight)
    torch.testing.assert_close(pooler.proj(pooler.values(tokens)), expected)


def test_no_image_gives_no_latent_and_every_gradient(pooler: AttentivePooler):
    latent = pooler(torch.zeros(0, 7, 24))
    assert latent.shape == (0, 32)
    latent.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in pooler.parameters())


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="embed_dim 32 is not a multiple of num_heads 5"):
        AttentivePooler(24, 32, num_heads=5)
    for heads in (0, -8):
        with pytest.raises(ValueError, match=f"is not a multiple of num_heads {heads}"):
            AttentivePooler(24, 32, num_heads=heads)
