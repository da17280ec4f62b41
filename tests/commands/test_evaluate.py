"""`lcl evaluate --suite`, from encoders to the page: one task trains, one fails, and nothing runs twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lcl_composer.cli import app
from lcl_composer.commands.evaluate import _print
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.report.transfer import read_entry, results_of
from tests import runs
from tests.methods.whole_runs import pairs
from tests.report.test_transfer import encoders, write_classified

ENCODER = (
    "{name: timm, model_name: vit_base_patch32_clip_224, image_size: 16, "
    "model_args: {patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}"
)


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments])


def test_what_is_asked_for_is_one_thing() -> None:
    for arguments in (["x"], ["x", "--suite", "a", "--probe", "b", "c"]):
        result = evaluate(*arguments)
        assert result.exit_code == 2
        assert "give --suite DIR, such as yamls/transfer/tiny, or --probe TRAIN VAL" in result.output


def test_many_encoders_stand_below_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ten columns of a terminal are not wide enough for a name."""
    labels = [f"generation{i}" for i in range(6)]
    entries = [
        read_entry(name, "classify", write_classified(tmp_path, name, 15 + i))
        for i, name in enumerate(labels)
    ]
    _print(entries, results_of(entries, encoders(*labels), []))
    lines = capsys.readouterr().out.splitlines()
    assert [next(line for line in lines if name in line).split("│")[2].strip() for name in labels] == labels
    assert sum("Top1 accuracy (%, chance 33.3)" in line for line in lines) == 1


@pytest.mark.slow
def test_a_suite_from_encoders_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))
    data = runs.write_data(tmp_path / "data", pairs(12))
    write_task(tmp_path, data, "good")
    write_task(tmp_path, data, "lost", optimizer={"name": "none"})
    clean_shared_memory()
    results = [evaluate(f"tiny={ENCODER}", "--suite", "tasks", "--seed", "3") for _ in range(2)]
    first, again = (result.output for result in results)
    assert [result.exit_code for result in results] == [1, 1]
    assert "[1/2] good of tiny: runs/tasks-good-tiny-" in first
    assert "[1/2] good of tiny: finished before" in again
    found = json.loads((tmp_path / "runs/transfer/tasks/results.json").read_text())
    (result,) = found["results"]
    assert (result["encoder"], result["task"], result["seed"], result["batches"]) == ("tiny", "good", 3, 2)
    assert 0 <= result["numbers"]["retrieval/image_to_text/recall@1"] <= 1
    (failure,) = found["failures"]
    assert (failure["task"], "unknown optimizer" in failure["reason"]) == ("lost", True)
    assert "lost of tiny" in (tmp_path / "runs/transfer/tasks/index.html").read_text()
    typo = evaluate(f"tiny={ENCODER}", "--suite", "tasks", "--seed", "3", "--set", "optimiser.lr=1")
    assert typo.exit_code == 1
    assert "0 of 2 runs; runs/transfer/tasks/results.json stays as it was" in typo.output
    assert json.loads((tmp_path / "runs/transfer/tasks/results.json").read_text()) == found


def write_task(folder: Path, data: Path, name: str, **changes: Any) -> None:
    values: dict[str, Any] = runs.settings(data, run_name=name, method={"name": "clip"}, max_duration="2ba")
    values |= changes
    values["data"]["eval"] = {"local": str(data / "train"), "num_workers": 0}
    (folder / "tasks").mkdir(exist_ok=True)
    text = yaml.safe_dump(values | {"evaluation": {"retrieval": {}}})
    (folder / "tasks" / f"{name}.yaml").write_text(text)
