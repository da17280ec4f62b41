"""Stand-ins for docker, Slurm, the launcher and `lcl`, which print what they got."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
PRINT_ARGUMENTS = '#!/bin/bash\nprintf "%s " "$(basename "$0")" "$@"; echo\n'


def make_command(path: Path, text: str = PRINT_ARGUMENTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def copy_scripts(folder: Path) -> None:
    """The launch scripts in a folder that stands for the repository."""
    shutil.copytree(LAUNCH, folder / "launch")


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """This process's, with the stand-ins of ``folder/bin`` before all other commands."""
    return os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | variables


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = environment(folder, **variables)
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=30)
