"""Peak memory of `lcl convert img2dataset` for a source and for one 20 times as large.

    python benchmarks/convert_memory.py

Each conversion is a command of its own with two workers; its memory is that of all its processes together
(proportional set size, sampled ten times a second). The tars are links to one, so the disk holds it once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

#: Images a tar, their side in pixels, and bytes a shard: a tar gives several shards, as a real one does.
PAIRS, SIDE, SHARD_SIZE = 100, 192, 2 << 20


def write_tar(path: Path) -> None:
    """Write a tar of noise images, which do not compress."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for index in range(PAIRS):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "JPEG", quality=90)
            facts = json.dumps({"caption": f"noise number {index}", "status": "success"}).encode()
            for suffix, data in (("jpg", buffer.getvalue()), ("json", facts)):
                member = tarfile.TarInfo(f"{index:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def memory(process: psutil.Process) -> int:
    """Return the bytes of a process and all its descendants, shared pages counted once."""
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def convert(source: Path, out: Path) -> tuple[int, float]:
    """Convert a folder; return the peak memory in bytes and the seconds."""
    lcl = [sys.executable, "-c", "from lcl_composer.cli import app; app()", "convert", "img2dataset"]
    options = ["--workers", "2", "--shard-size", str(SHARD_SIZE), "--no-progress"]
    started, peak = time.monotonic(), 0
    running = subprocess.Popen([*lcl, str(source), str(out), *options], stdout=subprocess.DEVNULL)
    process = psutil.Process(running.pid)
    while running.poll() is None:
        peak = max(peak, memory(process))
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"lcl convert ended with {running.returncode}")
    return peak, time.monotonic() - started


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tars", type=int, default=4, help="tars of the smaller source")
    parser.add_argument("--factor", type=int, default=20, help="how much larger the other one is")
    arguments = parser.parse_args()
    table = Table(
        "input", "documents", "source MiB", "peak memory MiB", "seconds", title="lcl convert img2dataset"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_tar(Path(folder, "one.tar"))
        size = Path(folder, "one.tar").stat().st_size
        for factor in (1, arguments.factor):
            source = Path(folder, f"x{factor}")
            source.mkdir()
            tars = arguments.tars * factor
            for number in range(tars):
                os.link(Path(folder, "one.tar"), source / f"{number:05d}.tar")
            peak, seconds = convert(source, Path(folder, f"out{factor}"))
            mib = f"{tars * size / 2**20:.0f}"
            table.add_row(f"{factor}x", f"{tars * PAIRS:,}", mib, f"{peak / 2**20:.0f}", f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
