"""Attention probes against plain versions of AIM's and InternVL's, one by one and many at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.models.attention_probe import AttentionProbes

WIDTH, CLASSES, HEADS = 12, 5, 3
INTERN_VL: dict[str, Any] = {
    "query": "mean", "token_norm": "layer", "qkv_bias": True, "proj_dim": 8, "head_norm": True
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {"aim": {}, "internvl": INTERN_VL}


class PlainAIM(nn.Module):
    """BatchNorm without weights, one query, keys and values without bias, no output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6)
        self.query = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x.transpose(1, 2)).transpose(1, 2)
        pooled = attend(self.query.expand(len(x), -1, -1), self.key(x), self.value(x))
        return self.head(pooled.mean(1))


class PlainInternVL(nn.Module):
    """The mean token attends; LayerNorms of eps 1e-5, projections with biases, BatchNorm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(WIDTH, eps=1e-5) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, 8)
        self.head_norm = nn.BatchNorm1d(8, eps=1e-6)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(self.query_norm(x.mean(1, keepdim=True)))
        pooled = attend(query, self.key(self.key_norm(x)), self.value(self.value_norm(x)))
        return self.head(self.head_norm(self.proj(pooled).squeeze(1)))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (query, key, value))
    weights = (q * (WIDTH // HEADS) ** -0.5 @ k.transpose(2, 3)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


#: What adds the same to the scores of all keys.
CANCELS = ("key.bias", "key_norm.bias")
PLAIN = {"aim": PlainAIM, "internvl": PlainInternVL}


def probes(form: str, count: int = 1) -> AttentionProbes:
    """Probes with all weights drawn, biases and norms too, each its own."""
    torch.manual_seed(0)
    made = AttentionProbes(WIDTH, CLASSES, count, HEADS, **FORMS[form])
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def plain_twin(form: str, made: AttentionProbes, number: int = 0) -> nn.Module:
    plain = PLAIN[form]()
    for name, parameter in plain.named_parameters():
        if name in CANCELS:
            nn.init.normal_(parameter)
            continue
        path = "weights.query.weight" if name == "query" else f"weights.{name}"
        parameter.data = made.get_parameter(f"{path}.{number}").detach().reshape(parameter.shape).clone()
    return plain


def tokens(images: int, seed: int = 1) -> Tensor:
    """Tokens of different means and deviations a feature."""
    torch.manual_seed(seed)
    return torch.randn(images, 6, WIDTH) * torch.linspace(0.2, 3, WIDTH) + torch.linspace(-4, 4, WIDTH)


@pytest.mark.parametrize("form", FORMS)
def test_a_probe_is_the_published_one(form: str) -> None:
    made = probes(form)
    plain, x, labels = plain_twin(form, made), tokens(7), torch.arange(7) % CLASSES
    for _ in range(2):  # twice, for the running statistics
        found, expected = made(x)[0], plain(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad(nn.functional.cross_entropy(expected, labels), list(plain.parameters()))
    nn.functional.cross_entropy(found, labels).backward()
    for (name, _), grad in zip(plain.named_parameters(), grads, strict=True):
        if name in CANCELS:
            assert grad.abs().max() < 1e-6
            continue
        path = "weights.query.weight" if name == "query" and form == "aim" else f"weights.{name}"
        mine = made.get_parameter(f"{path}.0").grad
        assert mine is not None
        torch.testing.assert_close(mine, grad.reshape(mine.shape), rtol=1e-3, atol=1e-5, msg=name)
    made.eval(), plain.eval()
    x = tokens(5, seed=2)
    torch.testing.assert_close(made(x)[0], plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_many_probes_are_those_alone(form: str) -> None:
    made, x = probes(form, count=3), tokens(7)
    found = made(x)
    for number in range(3):
        torch.testing.assert_close(found[number], plain_twin(form, made, number)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_probes_start_alike(form: str) -> None:
    made = AttentionProbes(WIDTH, CLASSES, 3, HEADS, **FORMS[form])
    logits = made(tokens(4))
    torch.testing.assert_close(logits[0], logits[2])
    assert {made.probe_of(name) for name, _ in made.named_parameters()} == {0, 1, 2}


@pytest.mark.parametrize("form", FORMS)
def test_operations_are_counted(form: str) -> None:
    made, images = AttentionProbes(48, 10, 4, 6, **FORMS[form]), 64
    with FlopCounterMode(display=False) as counter:
        made(torch.randn(images, 9, 48))
    assert made.flops(images, 9) == pytest.approx(counter.get_total_flops(), rel=0.06)


@pytest.mark.parametrize("form", FORMS)
def test_no_image_gives_no_logit_and_leaves_the_statistics(form: str) -> None:
    made = probes(form)
    made(tokens(6))
    before = {name: value.clone() for name, value in made.named_buffers()}
    logits = made(tokens(0))
    logits.sum().backward()
    assert logits.shape == (1, 0, CLASSES)
    assert all(not p.grad.any() for p in made.parameters() if p.grad is not None)
    assert all(torch.equal(before[name], value) for name, value in made.named_buffers())


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads 5 does not divide the encoder's width 12"):
        AttentionProbes(WIDTH, CLASSES, num_heads=5)
    for heads in (0, -12):
        with pytest.raises(ValueError, match=f"num_heads {heads} does not divide"):
            AttentionProbes(WIDTH, CLASSES, num_heads=heads)
    with pytest.raises(ValueError, match="proj_dim 0 must be at least 1, or null"):
        AttentionProbes(WIDTH, CLASSES, num_heads=2, proj_dim=0)
