"""The walk-through of callbacks/README.md, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.registry import callbacks
from lcl_composer.report.metrics_file import read_metrics
from tests.callbacks.training import make_trainer

ROOT = Path(__file__).parents[2]
README = (ROOT / "callbacks" / "README.md").read_text()


def test_the_example_runs_and_its_plot_is_drawn(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "callbacks").mkdir()
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "callbacks" / "image_use.py").write_text(example)
    monkeypatch.chdir(tmp_path)  # a drop-in is found in the working directory
    image_use = callbacks.build({"name": "image_use", "every": "1ba"})
    metrics = Path("runs/quickstart/metrics.jsonl")
    make_trainer([image_use], [JsonLinesLogger(metrics)]).fit()
    # the fake language model reads no images, so swapping them costs nothing
    assert [row["image_use"] for row in read_metrics(metrics)] == [0.0, 0.0]

    (plot,) = re.findall(r"python - <<'PY'\n(.*?)PY\n", README, re.DOTALL)
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", plot], check=True, env=environment)
    assert (tmp_path / "image_use.png").stat().st_size > 1000


def test_every_drop_in_is_tested_and_those_of_the_readme_are_there() -> None:
    for file in (ROOT / "callbacks").glob("*.py"):
        assert (ROOT / "tests" / "callbacks" / f"test_{file.name}").exists()
    named = re.findall(r"^  (\w+): \{", README, re.MULTILINE)
    assert len(named) >= 2
    assert all((ROOT / "callbacks" / f"{name}.py").exists() for name in named)
