"""The rules that hold for every file: see CONTRIBUTING.md."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SOURCES = sorted(
    path
    for folder in ("lcl_composer", "callbacks", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
SCRIPTS = [
    *sorted(ROOT.glob("scripts/*.sh")),
    *sorted(ROOT.glob("launch/*.sh")),
    ROOT / "launch/slurm.sbatch",
    ROOT / ".ci/run",
]


def tool(name: str) -> str:
    """Path of a program of the environment, or a skip that says what is missing."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (it comes with the dev extra)")
    return found


def long_functions(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return [
        f"{path.relative_to(ROOT)}: {name} ({n} lines)"
        for name, n in lengths.items()
        if n > MAX_FUNCTION_LINES
    ]


def unsafe_loads(path: Path) -> list[str]:
    """Calls of ``torch.load`` in ``path`` that do not say ``weights_only=True``."""
    calls = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    unsafe = [call for call in loads if "weights_only=True" not in map(ast.unparse, call.keywords)]
    return [f"{path.relative_to(ROOT)}:{call.lineno}" for call in unsafe]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert [
        f"{path.relative_to(ROOT)} ({n} lines)" for path, n in lengths.items() if n > MAX_FILE_LINES
    ] == []


def test_functions_are_short() -> None:
    assert [problem for path in SOURCES for problem in long_functions(path)] == []


def test_torch_loads_weights_only() -> None:
    # test_checkpoint.py asks for unsafe loads to show that they are refused.
    sources = [path for path in SOURCES if path.name != "test_checkpoint.py"]
    assert [problem for path in sources for problem in unsafe_loads(path)] == []


def test_ruff_finds_nothing() -> None:
    """Docstrings, pickles, marks of unfinished work and formatting are its rules (pyproject.toml)."""
    for arguments in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        done = subprocess.run([tool("ruff"), *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"ruff {' '.join(arguments)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script: Path) -> None:
    done = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_dockerfile_is_sound() -> None:
    done = subprocess.run([tool("hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_image_runs_as_an_ordinary_user() -> None:
    users = [
        line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("USER ")
    ]
    assert users
    assert users[-1] not in ("root", "0")
