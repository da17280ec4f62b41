from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.commands.new import create
from lcl_composer.errors import ConfigError
from lcl_composer.registry import callbacks
from tests.forked import Forked, module

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what `lcl new` and the test it writes need of a checkout."""
    for folder in ("tests/callbacks", "tests/evaluation"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("test_*", "__pycache__")
        )
    (tmp_path / "tests" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def lcl(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_the_new_test_passes_as_it_is_and_can_fail(checkout: Path) -> None:
    output = lcl("new", "callback", "latent_spread")
    assert "python -m pytest tests/callbacks/test_latent_spread.py" in output
    component = checkout / "callbacks" / "latent_spread.py"
    assert "class LatentSpread(Periodic):" in component.read_text()
    assert "$" not in component.read_text() + (checkout / "tests/callbacks/test_latent_spread.py").read_text()
    broken, _ = create("callback", "broken_spread")
    broken.write_text(broken.read_text().replace("logger.log_metrics(", "dict("))

    tests = ["tests/callbacks/test_latent_spread.py", "tests/callbacks/test_broken_spread.py"]
    _, output = Forked(checkout, run_tests, *tests).finish()
    assert "1 failed, 1 passed" in output, output
    assert "FAILED tests/callbacks/test_broken_spread.py" in output


def run_tests(*files: str) -> None:
    """``python -m pytest FILES``, in a process that has imported the tests of this checkout for another."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "callbacks")]:
        del sys.modules[name]
    module("pytest", *files)


def test_it_is_clean_and_listed_at_once(checkout: Path) -> None:
    files = create("callback", "latent_spread_too")
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        rules = ["--config", str(ROOT / "pyproject.toml")]
        # not the order of imports: which are ours cannot be seen here
        for command in (["check", "--ignore=I001", *rules], ["format", "--check", *rules]):
            done = subprocess.run([ruff, *command, *files], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
    output = lcl("list", "callbacks")
    assert "latent_spread_too" in output
    assert "Standard deviation of the features of held-out images" in output
    assert callbacks.problems({"name": "latent_spread_too", "evry": "1ba"})


@pytest.mark.parametrize("name", ["2fast", "a-b", "a.b", "../up", "_private", "class", "CamelCase", ""])
def test_what_cannot_be_a_name_is_refused(checkout: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name; use lower-case words"):
        create("callback", name)
    assert not (checkout / "callbacks").exists()


def test_names_in_use_are_refused(checkout: Path) -> None:
    with pytest.raises(ConfigError, match="'speed_monitor' already is a callback of LCL-Composer"):
        create("callback", "speed_monitor")
    with pytest.raises(ConfigError, match=r"attention_maps\.py exists already"):  # the checkout's own
        create("callback", "attention_maps")
    create("callback", "mine")
    assert "mine.py exists already" in lcl("new", "callback", "mine", code=2)
    (checkout / "callbacks" / "mine.py").unlink()
    with pytest.raises(ConfigError, match=r"test_mine\.py exists already"):
        create("callback", "mine")
    assert not (checkout / "callbacks" / "mine.py").exists()


def test_other_kinds_and_other_folders_are_refused(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "did you mean 'callback'?" in lcl("new", "callbak", "mine", code=2)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert "start in the checkout" in lcl("new", "callback", "mine", code=2)
    assert not Path("callbacks").exists()
