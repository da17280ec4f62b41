"""The Triton kernels pass the same tests, in the interpreter, which must be chosen before the import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ["test_linear_cross_entropy.py", "test_pairs.py"]


@pytest.mark.slow
def test_triton_kernels_in_the_interpreter():
    folder = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        *(str(folder / f) for f in FILES),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder.parents[1])
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
