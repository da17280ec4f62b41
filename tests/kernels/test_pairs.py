"""InfoNCE and the sigmoid loss: what holds for one holds for the other."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcl_composer.kernels import info_nce, info_nce_torch, sigmoid_loss, sigmoid_torch
from tests.kernels import cases

OPS = {"info_nce": (info_nce, cases.plain_info_nce), "sigmoid": (sigmoid_loss, cases.plain_sigmoid_loss)}


def inputs(
    op: str, n: int, m: int, dim: int, dtype: torch.dtype, scale: float = 20.0, masked: float = 0.0
) -> tuple[list[Tensor], Tensor | None]:
    """[rows [n, D], columns [m, D], scale, (bias)] and a column mask [m]."""
    generator = torch.Generator().manual_seed(n + 100 * m)
    rows, columns = (
        torch.nn.functional.normalize(torch.randn(k, dim, generator=generator), dim=1).to(dtype)
        for k in (n, m)
    )
    mask = torch.rand(m, generator=generator) >= masked if masked else None
    scalars = [torch.tensor(scale)] + ([torch.tensor(-5.0)] if op == "sigmoid" else [])
    return [rows, columns, *scalars], mask


def check(
    place: tuple[str, str],
    op: str,
    tensors: list[Tensor],
    mask: Tensor | None = None,
    row_offset: int = 0,
    floor: float = 1e-7,
) -> None:
    device, backend = place
    fused, plain = OPS[op]
    found, expected = cases.leaves(*(tensor.to(device) for tensor in tensors))
    loss = fused(
        *found,
        row_offset=row_offset,
        column_mask=None if mask is None else mask.to(device),
        backend=backend,
    )
    reference = plain(*expected, row_offset=row_offset, mask=mask)
    cases.compare(loss, found, reference, expected, cases.TOLERANCE[tensors[0].dtype], floor)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_equals_float64(place: tuple[str, str], op: str, dtype: torch.dtype, scale: float):
    tensors, _ = inputs(op, 70, 70, 24, dtype, scale)
    check(place, op, tensors)
    tensors, mask = inputs(op, 50, 131, 24, dtype, scale, masked=0.2)
    check(place, op, tensors, mask, row_offset=33)


@settings(max_examples=cases.EXAMPLES, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(sorted(OPS)),
    n=st.integers(0, 70),
    before=st.integers(0, 40),
    after=st.integers(0, 40),
    dim=st.integers(1, 40),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_size(op: str, n: int, before: int, after: int, dim: int, masked: float):
    for place in cases.PLACES:
        tensors, mask = inputs(op, n, before + n + after, dim, torch.float32, masked=masked)
        check(place, op, tensors, mask, row_offset=before)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_identical_rows(place: tuple[str, str], op: str):
    tensors, _ = inputs(op, 40, 40, 8, torch.float32, 100.0)
    row = tensors[0][:1].repeat(40, 1)
    # InfoNCE's gradient is 0 here, a difference of terms of the size of the scale.
    check(place, op, [row, row.clone(), *tensors[2:]], floor=1e-6 * 100.0)


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
def test_opposite_rows_at_scale_100_do_not_underflow(place: tuple[str, str]):
    # Similarities are -100 and 100: e^-200 is 0 in float32, so a maximum shared by a tile would give log 0.
    row = torch.nn.functional.normalize(torch.ones(1, 8))
    rows = torch.cat([row.repeat(20, 1), -row.repeat(20, 1)])
    check(place, "info_nce", [rows, -rows, torch.tensor(100.0)])


@pytest.mark.parametrize("place", cases.PLACES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_two_runs_are_bitwise_equal(place: tuple[str, str], op: str):
    device, backend = place
    tensors, _ = inputs(op, 70, 131, 24, torch.float16)
    runs = []
    for _ in range(2):
        leaves, _ = cases.leaves(*(tensor.to(device) for tensor in tensors))
        loss = OPS[op][0](*leaves, backend=backend)
        runs.append([loss, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.skipif(cases.INTERPRETED, reason="the twins' own tests")
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: str):
    tensors, mask = inputs(op, 5, 8, 3, torch.float64, 3.0, masked=0.3)
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    with mock.patch.object(info_nce_torch, "CHUNK", 2), mock.patch.object(sigmoid_torch, "CHUNK", 2):
        assert torch.autograd.gradcheck(
            lambda *args: OPS[op][0](*args, row_offset=2, column_mask=mask), leaves
        )


@pytest.mark.parametrize("op", OPS)
def test_shapes_that_do_not_fit(op: str):
    tensors, _ = inputs(op, 4, 6, 3, torch.float32)
    fused = OPS[op][0]
    with pytest.raises(ValueError, match="rows 3 to 7 do not lie within 6 columns"):
        fused(*tensors, row_offset=3)
    with pytest.raises(ValueError, match="scale"):
        fused(tensors[0], tensors[1], torch.ones(1), *tensors[3:])
    with pytest.raises(ValueError, match="column_mask"):
        fused(*tensors, column_mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="reduction"):
        fused(*tensors, reduction="none")
    with pytest.raises(ValueError, match=r"\[4, 3\].*\[6, 2\]"):
        fused(tensors[0], tensors[1][:, :2], *tensors[2:])
