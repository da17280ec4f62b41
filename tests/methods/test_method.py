"""What the base class says of a method whose parts do not fit one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lcl_composer.errors import ConfigError
from lcl_composer.methods.method import Method, Term
from tests.evaluation.fakes import FakeLCL


def test_a_term_reads_in_its_order_and_the_batch() -> None:
    batch: Any = {"ids": ["a"]}
    term = Term(1.0, "targets", ("b", "batch", "a"), torch.add)
    assert term.read({"a": torch.tensor(1), "b": torch.tensor(2)}, batch) == [2, batch, 1]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_an_output_that_is_missing_is_named_with_those_there_are(weight: float) -> None:
    model = FakeLCL()
    model.terms = {
        "other": Term(1.0, "targets", ("hidden",), lambda hidden, total: hidden.sum() / total),
        "generation": Term(weight, "targets", ("hiden",), torch.sub),
    }
    batch: Any = {"totals": {"documents": torch.tensor(1), "targets": torch.tensor(1)}, "ids": ["a"]}
    outputs = {"targets": torch.ones(1), "hidden": torch.ones(1)}
    with pytest.raises(
        ConfigError, match=r"^method: a term reads 'hiden', which forward\(\) does not return"
    ) as it:
        model.loss(outputs, batch)
    assert str(it.value).endswith("; it returns hidden, targets")


def test_a_forward_that_returns_no_outputs_by_name() -> None:
    with pytest.raises(ConfigError, match="returns a Tensor; return outputs by name"):
        Term(1.0, "targets", ("hidden",), torch.sub).read(torch.ones(1))  # type: ignore[arg-type]


def test_only_numbers_are_weights_and_scales() -> None:
    settings = {"a_weight": None, "b_weight": "high", "c_weight": -1.0, "logit_scale_init": None}
    assert list(Method.refusals(settings)) == [("c_weight", "is -1.0, a weight must be at least 0")]
