from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lcl_composer.errors import ConfigError
from lcl_composer.models.attention import Packing, packed_causal_attention

LENGTHS = [1, 5, 130, 3]  # one document is longer than flex attention's blocks of 128


class Layer(nn.Module):
    def __init__(self, groups: int = 1):
        super().__init__()
        self.num_key_value_groups = groups


def draw(heads: int, key_heads: int, lengths: list[int] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, h, sum(lengths), 16) for h in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def plain(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
    """The formula with a mask [T, T]: softmax over earlier tokens of the same document."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    document = torch.repeat_interleave(torch.tensor(lengths))
    allowed = (document[:, None] == document[None]) & torch.ones(len(document), len(document)).tril().bool()
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~allowed, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("use_flex", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_equals_the_plain_formula(use_flex: bool, heads: int, key_heads: int, scale: float | None):
    query, key, value = draw(heads, key_heads)
    packing = Packing.of(LENGTHS, torch.device("cpu"), use_flex=use_flex)
    assert (packing.block_mask is not None) == use_flex
    layer = Layer(heads // key_heads)
    with torch.no_grad():
        output, weights = packed_causal_attention(layer, query, key, value, None, 0.0, scale, packing=packing)
    assert weights is None
    expected = plain(query, key, value, LENGTHS, 16**-0.5 if scale is None else scale)
    torch.testing.assert_close(output, expected.detach(), rtol=1e-5, atol=1e-6)


def test_gradients_equal_the_plain_formula():
    inputs = draw(4, 2)
    packing = Packing.of(LENGTHS, torch.device("cpu"))
    output, _ = packed_causal_attention(Layer(2), *inputs, None, packing=packing)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(output, inputs, upstream)
    theirs = torch.autograd.grad(plain(*inputs, LENGTHS, 0.25), inputs, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.1}, "no dropout"),
        ({"packing": None}, "Layer lost the packing"),
        ({"softcap": 50.0}, "softcap"),
        ({"sliding_window": 4}, "130 tokens is longer than sliding_window = 4"),
    ],
)
def test_what_the_packed_kernels_lack_is_refused(change: dict[str, float | None], message: str):
    options = {"packing": Packing.of(LENGTHS, torch.device("cpu")), **change}
    with pytest.raises(ConfigError, match=message):
        packed_causal_attention(Layer(), *draw(2, 2), None, **options)  # type: ignore[arg-type]


def test_a_window_longer_than_every_document_changes_nothing():
    packing = Packing.of(LENGTHS, torch.device("cpu"))
    inputs = draw(2, 2)
    without, _ = packed_causal_attention(Layer(), *inputs, None, packing=packing)
    within, _ = packed_causal_attention(Layer(), *inputs, None, packing=packing, sliding_window=130)
    assert torch.equal(without, within)
