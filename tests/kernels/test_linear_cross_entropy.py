from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcl_composer.kernels import linear_cross_entropy, linear_cross_entropy_torch
from tests.kernels import cases


def inputs(n: int, vocab: int, dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """hidden [N, D], weight [V, D], bias [V] in dtype and targets [N], a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((n, dim), (vocab, dim), (vocab,))
    )
    targets = torch.randint(0, vocab, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < 0.1] = -100
    return (2.0 * hidden / dim**0.5).to(dtype), weight.to(dtype), bias.to(dtype), targets


def check(
    place: tuple[str, str],
    tensors: tuple[Tensor, ...],
    with_bias: bool,
    floor: float = 1e-7,
    **options: object,
) -> None:
    device, backend = place
    *floats, targets = (tensor.to(device) for tensor in tensors)
    dtype = floats[0].dtype
    found, expected = cases.leaves(*floats[: 3 if with_bias else 2])
    losses = [
        op(leaf[0], leaf[1], targets, bias=leaf[2] if with_bias else None, **options, **extra)  # type: ignore[operator]
        for op, leaf, extra in (
            (linear_cross_entropy, found, {"backend": backend}),
            (cases.plain_linear_cross_entropy, expected, {}),
        )
    ]
    cases.compare(losses[0], found, losses[1], expected, cases.TOLERANCE[dtype], floor)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_float64(place: tuple[str, str], dtype: torch.dtype, reduction: str):
    tensors = inputs(*cases.SHAPE, dtype)
    check(place, tensors, False, reduction=reduction)
    check(place, tensors, True, reduction=reduction, z_loss=1e-2, label_smoothing=0.1)


@settings(max_examples=cases.EXAMPLES, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 70),
    vocab=st.integers(1, 140),
    dim=st.integers(1, 40),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    options=st.fixed_dictionaries(
        {"z_loss": st.sampled_from([0.0, 1e-3]), "label_smoothing": st.sampled_from([0.0, 0.2])}
    ),
    with_bias=st.booleans(),
)
def test_any_size(n: int, vocab: int, dim: int, reduction: str, options: dict, with_bias: bool):
    for place in cases.PLACES:
        check(place, inputs(n, vocab, dim, torch.float32), with_bias, 1e-6, reduction=reduction, **options)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 33])
def test_all_ignored_is_zero_with_zero_gradients(place: tuple[str, str], n: int):
    device, backend = place
    hidden, weight, _, targets = (t.to(device) for t in inputs(n, 50, 8, torch.float32))
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss = linear_cross_entropy(*leaves, torch.full_like(targets, -100), backend=backend)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, leaves):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
def test_values_at_the_edge_of_bfloat16(place: tuple[str, str]):
    hidden, weight, _, targets = inputs(40, 60, 16, torch.bfloat16)
    small = torch.where(weight < 0, -1, 1) * weight.abs().clamp(min=0.3)  # no subnormal numbers
    check(place, (hidden * 2.0**124, small * 2.0**-124, weight[:, 0], targets), False)
    # Logits near 1e4: one probability is 1 and all others are 0.
    check(place, (hidden * 64, weight * 64, weight[:, 0], targets), False)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
def test_identical_rows_and_words(place: tuple[str, str]):
    hidden, weight, bias, targets = inputs(40, 60, 16, torch.float32)
    check(place, (hidden[:1].repeat(40, 1), weight[:1].repeat(60, 1), bias, targets), True)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
def test_two_runs_are_bitwise_equal(place: tuple[str, str]):
    device, backend = place
    hidden, weight, bias, targets = (t.to(device) for t in inputs(*cases.SHAPE, torch.float16))
    runs = []
    for _ in range(2):
        leaves, _ = cases.leaves(hidden, weight, bias)
        loss = linear_cross_entropy(leaves[0], leaves[1], targets, bias=leaves[2], backend=backend)
        runs.append([loss, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
def test_an_ignore_index_inside_the_vocabulary(place: tuple[str, str]):
    device, backend = place
    hidden, weight, _, targets = (t.to(device) for t in inputs(40, 60, 8, torch.float32))
    targets = torch.where(targets < 0, 7, targets)
    found = linear_cross_entropy(hidden, weight, targets, ignore_index=7, backend=backend)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, ignore_index=7)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
def test_only_the_gradients_asked_for(place: tuple[str, str]):
    device, backend = place
    hidden, weight, _, targets = (t.to(device) for t in inputs(40, 60, 8, torch.float32))
    both, _ = cases.leaves(hidden, weight)
    expected = torch.autograd.grad(linear_cross_entropy(*both, targets, backend=backend), both)
    for index in (0, 1):
        tensors = [hidden, weight]
        tensors[index] = leaf = both[index]
        loss = linear_cross_entropy(*tensors, targets, backend=backend)
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected[index])


def test_mixed_precision_weight_keeps_its_dtype_under_autocast():
    for device, backend in cases.PLACES:
        hidden, weight, _, targets = (t.to(device) for t in inputs(40, 60, 16, torch.float32))
        (found, expected) = cases.leaves(hidden, weight)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = linear_cross_entropy(*found, targets, backend=backend)
        assert loss.dtype == torch.float32
        gradients = torch.autograd.grad(loss, found)
        reference = cases.plain_linear_cross_entropy(*expected, targets)
        for got, want in zip(gradients, torch.autograd.grad(reference, expected), strict=True):
            assert got.dtype == torch.float32
            cases.assert_close(got, want, 2e-2)


@pytest.mark.skipif(cases.INTERPRETED, reason="the twin's own tests")
class TestTwin:
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_gradcheck(self, reduction: str):
        hidden, weight, bias, targets = inputs(7, 11, 3, torch.float64)
        leaves, _ = cases.leaves(hidden, weight, bias)
        with mock.patch.object(linear_cross_entropy_torch, "CHUNK", 3):
            assert torch.autograd.gradcheck(
                lambda h, w, b: linear_cross_entropy(
                    h, w, targets, bias=b, z_loss=0.1, label_smoothing=0.2, reduction=reduction
                ),
                leaves,
            )

    def test_no_gradient_is_computed_under_no_grad(self):
        hidden, weight, _, targets = inputs(40, 60, 8, torch.float32)
        with mock.patch.object(linear_cross_entropy_torch, "_logit_gradient_") as gradient:
            with torch.no_grad():
                linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets)
            gradient.assert_not_called()
            linear_cross_entropy(hidden, weight, targets)
            gradient.assert_called_once()

    def test_a_retained_graph_gives_the_same_gradient_twice(self):
        hidden, weight, _, targets = inputs(40, 60, 8, torch.float32)
        loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets) * 3.0
        first = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], first, rtol=0, atol=0)


def test_shapes_and_names_that_do_not_fit():
    hidden, weight, bias, targets = inputs(4, 6, 3, torch.float32)
    with pytest.raises(ValueError, match=r"\[4, 3\], \[6, 2\]"):
        linear_cross_entropy(hidden, weight[:, :2], targets)
    with pytest.raises(ValueError, match="targets"):
        linear_cross_entropy(hidden, weight, targets[:2])
    with pytest.raises(ValueError, match="bias"):
        linear_cross_entropy(hidden, weight, targets, bias=bias[:2])
    with pytest.raises(ValueError, match="reduction"):
        linear_cross_entropy(hidden, weight, targets, reduction="average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cuda"):
        linear_cross_entropy(hidden, weight, targets, backend="cuda")
