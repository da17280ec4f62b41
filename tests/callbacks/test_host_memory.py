from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from lcl_composer.callbacks.host_memory import host_memory
from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.registry import callbacks
from lcl_composer.report.metrics_file import read_metrics
from tests.callbacks.training import make_trainer
from tests.forked import Forked


def test_it_is_logged_every_so_often(tmp_path: Path) -> None:
    memory = callbacks.build({"name": "host_memory", "every": "2ba"})
    make_trainer([memory], [JsonLinesLogger(tmp_path / "m.jsonl")], duration="4ba").fit()
    rows = [row for row in read_metrics(tmp_path / "m.jsonl") if "memory/host_rss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert 0.1 < rows[0]["memory/host_rss"] <= 1.01 * rows[0]["memory/host_rss_peak"] < 100
    assert rows[0]["memory/workers"] >= 0


def hold_a_tenth() -> None:
    before = host_memory()["host_rss"]
    held = np.ones(100_000_000, np.uint8)
    print(host_memory()["host_rss"] - before, len(held))


def test_what_is_held_counts_in_gigabytes(tmp_path: Path) -> None:
    # In a process of its own: what tests before have left may be given back just then.
    code, output = Forked(tmp_path, hold_a_tenth).finish()
    assert code == 0
    assert 0.09 < float(output.split()[0]) < 0.15


def test_children_count_as_workers() -> None:
    before = host_memory()["workers"]
    code = "held = bytearray(b'1') * 200_000_000; print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert 0.2 < host_memory()["workers"] - before < 0.3
    child.communicate(b"\n")
