"""The example of CONTRIBUTING.md, run as it stands there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


def test_the_callback_of_the_guide_logs_the_norm_of_the_weights() -> None:
    example = re.search(r"^ *```python\n(.*?)^ *```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert example
    names: dict = {}
    exec(textwrap.dedent(example[1]), names)
    callback = names["WeightNorm"](every="50ba")

    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 2.0)
    torch.nn.init.constant_(model.bias, 1.0)
    logged: dict[str, float] = {}
    callback.act(SimpleNamespace(model=model), SimpleNamespace(log_metrics=logged.update))
    assert logged == pytest.approx({"weight_norm": 3.0})  # sqrt(4 + 4 + 1)
