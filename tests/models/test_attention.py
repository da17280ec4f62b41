from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from lcl_composer.errors import ConfigError
from lcl_composer.models import attention
from lcl_composer.models.attention import Packing, packed_attention
from tests.models.flash import Call, flash_on_cpu

LENGTHS = [1, 5, 130, 3]  # one document is longer than flex attention's blocks of 128
CPU = torch.device("cpu")
WINDOW_AND_SOFTCAP = [(None, None), (4, None), (128, None), (None, 3.0), (50, 3.0)]


class Layer(nn.Module):
    def __init__(self, groups: int = 1):
        super().__init__()
        self.num_key_value_groups = groups


def draw(heads: int, key_heads: int, lengths: list[int] = LENGTHS, width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, h, sum(lengths), width) for h in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
) -> Tensor:
    """The formula with a mask [T, T]: softmax over the document's tokens, the earlier ones if causal."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = document[:, None] == document[None]
    if causal:
        allowed &= torch.ones(len(document), len(document)).tril().bool()
    if window is not None:
        allowed &= torch.ones(len(document), len(document)).triu(1 - window).bool()
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad(output, inputs, upstream))


@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(("window", "softcap"), WINDOW_AND_SOFTCAP)
def test_equals_the_plain_formula(
    heads: int, key_heads: int, scale: float | None, window: int | None, softcap: float | None
):
    inputs = draw(heads, key_heads)
    output, weights = packed_attention(
        Layer(heads // key_heads),
        *inputs,
        None,
        scaling=scale,
        packing=Packing(LENGTHS, CPU),
        sliding_window=window,
        softcap=softcap,
    )
    assert weights is None
    expected = plain(*inputs, LENGTHS, 0.25 if scale is None else scale, window, softcap)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 130])
def test_both_ways_equals_the_plain_formula(window: int | None):
    """A window as long as the longest document hides nothing."""
    inputs = draw(4, 2)
    packing = Packing(LENGTHS, CPU, causal=False)
    output, _ = packed_attention(Layer(2), *inputs, None, packing=packing, sliding_window=window)
    expected = plain(*inputs, LENGTHS, 0.25, causal=False)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"sliding_window": 4}, {"softcap": 3.0}], ids=str)
def test_both_ways_goes_without_window_and_softcap(change: dict[str, float]):
    packing = Packing(LENGTHS, CPU, causal=False)
    with pytest.raises(ConfigError, match="attends both ways"):
        packed_attention(Layer(), *draw(2, 2), None, packing=packing, **change)  # type: ignore[arg-type]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention as its own formula: no compiler, and no GPU."""
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("window", "softcap"), WINDOW_AND_SOFTCAP)
@pytest.mark.parametrize("width", [4, 16, 24])
def test_flex_attention_equals_the_plain_formula(window: int | None, softcap: float | None, width: int):
    inputs = draw(2, 2, width=width)
    packing = Packing(LENGTHS, CPU)
    with torch.no_grad():  # torch current has no gradient of flex attention on a CPU
        output = attention._flex_packed_attention(*inputs, packing, 0.3, window, softcap)
        expected = plain(*inputs, LENGTHS, 0.3, window, softcap)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Flex attention captured as for a GPU, run by the formula; counts what was compiled."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch.compiler.reset()
    attention._compiled_flex_attention.cache_clear()
    yield counter
    attention._compiled_flex_attention.cache_clear()
    torch.compiler.reset()


def run_flex(lengths: list[int], width: int = 16) -> None:
    with torch.no_grad():
        attention._flex_packed_attention(
            *draw(2, 2, lengths, width), Packing(lengths, CPU), 0.3, window=40, softcap=None
        )


def test_flex_attention_is_not_compiled_anew_for_each_length(counted: CompileCounter):
    for lengths in ([300, 5], [200], [64] * 9, [1, 700, 3], [129], [100] * 6, [77, 400], [256, 256]):
        run_flex(lengths)
    assert counted.frame_count == 1


def test_flex_attention_never_falls_back_to_all_scores(counted: CompileCounter):
    run_flex([300, 5])
    limit = torch._dynamo.config.patch(recompile_limit=1)  # pytest's own patch leaves none behind
    with limit, pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        run_flex([300, 5], width=32)  # compiled anew, which a batch must never need


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """FlashAttention for the CPU, by the plain formula."""
    yield from flash_on_cpu(
        monkeypatch, lambda q, k, v, lengths, _key_lengths, scale: plain(q, k, v, lengths, scale)
    )


@pytest.mark.parametrize(("width", "padded"), [(4, 8), (12, 16), (16, 16)])
def test_nested_attention_hands_flash_attention_the_documents(flash: list[Call], width: int, padded: int):
    inputs = draw(2, 2, width=width)
    output = attention.nested_attention(*inputs, Packing(LENGTHS, CPU), 0.3)
    expected = plain(*inputs, LENGTHS, 0.3)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert flash == [Call(130, 130, padded, causal=True)]


def test_flash_attention_is_told_to_go_both_ways(flash: list[Call]):
    attention.nested_attention(*draw(2, 2), Packing(LENGTHS, CPU, causal=False), 0.3)
    assert flash == [Call(130, 130, 16, causal=False)]


def test_nested_attention_refuses_where_no_kernel_of_variable_length_runs():
    with pytest.raises(RuntimeError, match="No viable backend"):
        attention.nested_attention(*draw(2, 2), Packing(LENGTHS, CPU), 0.3)


def test_queries_and_keys_take_the_type_of_values():
    query, key, value = draw(2, 2)
    packing = Packing(LENGTHS, CPU)
    output, _ = packed_attention(Layer(), query, key, value.bfloat16(), None, packing=packing)
    same, _ = packed_attention(
        Layer(), query.bfloat16(), key.bfloat16(), value.bfloat16(), None, packing=packing
    )
    assert torch.equal(output, same)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dropout": 0.1}, "no dropout"), ({"packing": None}, "Layer lost the packing")],
)
def test_what_the_packed_kernels_lack_is_refused(change: dict[str, float | None], message: str):
    options = {"packing": Packing(LENGTHS, CPU), **change}
    with pytest.raises(ConfigError, match=message):
        packed_attention(Layer(), *draw(2, 2), None, **options)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 12, 64])
@pytest.mark.parametrize(("window", "softcap"), WINDOW_AND_SOFTCAP)
def test_cuda_equals_the_plain_formula(
    dtype: torch.dtype, width: int, window: int | None, softcap: float | None
):
    device = torch.device("cuda")
    inputs = [x.detach().to(device, dtype).requires_grad_() for x in draw(2, 2, width=width)]
    output, _ = packed_attention(
        Layer(), *inputs, None, packing=Packing(LENGTHS, device), sliding_window=window, softcap=softcap
    )
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    expected = plain(*exact, LENGTHS, width**-0.5, window, softcap)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3  # TF32
    upstream = torch.ones_like(output)
    pairs = zip(
        [output, *torch.autograd.grad(output, inputs, upstream)],
        [expected, *torch.autograd.grad(expected, exact, upstream.double().cpu())],
        strict=True,
    )
    for ours, theirs in pairs:
        assert (ours.double().cpu() - theirs).norm() <= tolerance * theirs.norm()
