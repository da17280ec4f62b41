from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.models.attention import Packing, nested_attention
from lcl_composer.models.cross_attention import CrossAttention, SeenImages, packed_cross_attention
from tests.models.flash import Call, flash_on_cpu

SPANS, KEYS, HEADS = [1, 5, 130, 3], 7, 2
CPU = torch.device("cpu")
QUERIES, KEY_PACKING = Packing(SPANS, CPU), Packing([KEYS] * len(SPANS), CPU)


def draw(width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys = KEYS * len(SPANS)
    shapes = [(1, HEADS, tokens, width) for tokens in (sum(SPANS), keys, keys)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def plain(
    query: Tensor, key: Tensor, value: Tensor, spans: list[int], keys: list[int], scale: float
) -> Tensor:
    """The formula with a mask [Q, I * K]: softmax over the patch tokens of one's own image."""
    images = torch.arange(len(spans))
    image_Q, image_S = (images.repeat_interleave(torch.tensor(lengths)) for lengths in (spans, keys))
    scores = query @ key.transpose(-1, -2) * scale
    scores = scores.masked_fill(image_Q[:, None] != image_S[None], float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad(output, inputs, upstream))


def assert_equal(output: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_equals_the_plain_formula() -> None:
    inputs = draw()
    output = packed_cross_attention(*inputs, QUERIES, KEY_PACKING)
    assert_equal(output, plain(*inputs, SPANS, KEY_PACKING.lengths, 0.25), inputs)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """FlashAttention for the CPU, by the plain formula."""
    yield from flash_on_cpu(monkeypatch, plain)


@pytest.mark.parametrize(("width", "padded"), [(4, 8), (16, 16)])
def test_on_cuda_flash_attention_is_handed_the_pieces(flash: list[Call], width: int, padded: int) -> None:
    inputs = draw(width)
    output = nested_attention(*inputs, QUERIES, 0.25, KEY_PACKING)
    assert_equal(output, plain(*inputs, SPANS, KEY_PACKING.lengths, 0.25), inputs)
    assert flash == [Call(130, KEYS, padded, causal=False)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [12, 64])
def test_cuda_equals_the_plain_formula(dtype: torch.dtype, width: int) -> None:
    device = torch.device("cuda")
    inputs = [x.detach().to(device, dtype).requires_grad_() for x in draw(width)]
    packings = (Packing(SPANS, device), Packing(KEY_PACKING.lengths, device))
    output = packed_cross_attention(*inputs, *packings)
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    expected = plain(*exact, SPANS, KEY_PACKING.lengths, width**-0.5)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3  # TF32
    upstream = torch.ones_like(output)
    found = [output, *torch.autograd.grad(output, inputs, upstream)]
    wanted = [expected, *torch.autograd.grad(expected, exact, upstream.double().cpu())]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.double().cpu() - theirs).norm() <= tolerance * theirs.norm()


def images_of(width: int = 24) -> SeenImages:
    """Images seen by tokens 2 to 4 and 7 to 7 of 9."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, KEYS, width, generator=generator, requires_grad=True)
    return SeenImages.from_starts(tokens, torch.tensor([2, 7]), [3, 1])


def test_rows_are_those_from_each_start_on() -> None:
    rows = images_of().rows
    assert rows is not None
    assert rows.tolist() == [2, 3, 4, 7]


def test_a_token_without_an_image_gets_nothing() -> None:
    attention, images = CrossAttention(32, 24, HEADS, bias=True), images_of()
    hidden = torch.randn(9, 32)
    output = attention(hidden, images)
    assert output.any(1).tolist() == [False, False, True, True, True, False, False, True, False]
    (gradient,) = torch.autograd.grad(output[:5].sum(), [images.tokens])
    assert gradient.flatten(1).any(1).tolist() == [True, False]  # the second image is seen by token 7 alone


def test_without_an_image_every_parameter_has_a_gradient_of_zero() -> None:
    attention = CrossAttention(32, 24, HEADS, bias=True)
    images = SeenImages.from_starts(torch.zeros(0, KEYS, 24), torch.zeros(0, dtype=torch.int64), [])
    attention(torch.randn(9, 32), images).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in attention.parameters())


def test_operations_are_what_torch_counts() -> None:
    attention, images = CrossAttention(32, 24, HEADS, bias=True), images_of()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        attention(torch.randn(9, 32), images)
    assert attention.flops([3, 1], KEYS) == counter.get_total_flops()


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 32 is not a multiple of num_heads 3"):
        CrossAttention(32, 24, 3, bias=True)
