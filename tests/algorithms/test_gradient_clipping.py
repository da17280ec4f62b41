from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lcl_composer.algorithms.gradient_clipping import GradientClipping, clip_adaptively
from lcl_composer.errors import ConfigError
from lcl_composer.registry import algorithms
from tests.algorithms.training import Record, make_trainer


def clipped(kind: Any, threshold: float) -> dict[str, torch.Tensor]:
    record = Record()  # callbacks see the gradients after the algorithms
    make_trainer([GradientClipping(kind, threshold)], [record], duration="1ba").fit()
    return record.gradients[0]


def test_norm_and_value() -> None:
    free = clipped("norm", 1e9)
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    half = clipped("norm", float(norm) / 2)
    for name, gradient in free.items():
        torch.testing.assert_close(half[name], gradient / 2, rtol=1e-4, atol=1e-9)
    assert max(float(g.abs().max()) for g in free.values()) > 0.01
    assert max(float(g.abs().max()) for g in clipped("value", 0.01).values()) == pytest.approx(0.01)


def test_adaptive_limits_each_unit_by_its_own_weights() -> None:
    parameter = nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    parameter.grad = torch.tensor([[0.3, 0.4], [30.0, 40.0]])
    clip_adaptively([parameter], 0.2)
    torch.testing.assert_close(parameter.grad, torch.tensor([[0.3, 0.4], [0.06, 0.08]]))


def test_a_weight_of_zero_keeps_a_gradient() -> None:
    bias = nn.Parameter(torch.zeros(3))
    bias.grad = torch.tensor([3.0, 4.0, 0.0])
    clip_adaptively([bias], 0.1)
    torch.testing.assert_close(bias.grad, torch.tensor([3.0, 4.0, 0.0]) * 1e-4 / 5)


def test_kinds_are_checked_before_training() -> None:
    assert (
        "clipping_type"
        in algorithms.problems(
            {"name": "gradient_clipping", "clipping_type": "nrm", "clipping_threshold": 1.0}
        )[0].key
    )
    with pytest.raises(ConfigError, match="must be above 0"):
        algorithms.build({"name": "gradient_clipping", "clipping_type": "norm", "clipping_threshold": 0.0})
