from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.forked import Forked, script


def test_a_process_begins_with_all_imported(tmp_path: Path):
    """Or every rank of the tests would take nine seconds to begin."""
    code, output = Forked(tmp_path, _list_modules).finish()
    assert code == 0, output
    assert {"composer.trainer", "timm", "open_clip", "lcl_composer.build"} <= set(output.split())


def _list_modules() -> None:
    print(*sys.modules)


def test_a_script_runs_as_from_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAYS", "hello")
    (tmp_path / "hello.py").write_text(
        "import os, sys\n"
        "print(__name__, os.getcwd(), os.environ['SAYS'], sys.argv[1:])\n"
        "sys.exit('error: no')\n"
    )
    code, output = Forked(tmp_path, script, tmp_path / "hello.py", "a=b").finish()
    assert code == 1
    assert sorted(output.splitlines()) == [f"__main__ {tmp_path} hello ['a=b']", "error: no"]


def test_it_is_killed_with_what_it_started(tmp_path: Path):
    process = Forked(tmp_path, _wait_with_a_child)
    while not (started := process.output()):
        time.sleep(0.01)
    child = psutil.Process(int(started))
    process.kill()
    assert process.poll() == -9
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def _wait_with_a_child() -> None:
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(100)
