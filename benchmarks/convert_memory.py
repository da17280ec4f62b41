"""Peak memory of `lcl convert img2dataset` for a source and for one 20 times as large.

    python benchmarks/convert_memory.py

Each conversion is a command of its own with two workers. Memory is what is resident, libraries included,
sampled 50 times a second: of the command, and of the largest process it started. (The sum would count pages
that the processes share several times over.) The tars are links to one, so the disk holds it once.
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


def resident(process: psutil.Process) -> int:
    """Return the bytes that a process has in memory, 0 when it has ended."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def convert(source: Path, out: Path) -> tuple[int, int, float]:
    """Convert a folder; return the peak bytes of the command and of its largest worker, and the seconds."""
    lcl = [sys.executable, "-c", "from lcl_composer.cli import app; app()", "convert", "img2dataset"]
    options = ["--workers", "2", "--shard-size", str(SHARD_SIZE), "--no-progress"]
    started, peak, largest = time.monotonic(), 0, 0
    running = subprocess.Popen([*lcl, str(source), str(out), *options], stdout=subprocess.DEVNULL)
    process = psutil.Process(running.pid)
    while running.poll() is None:
        peak = max(peak, resident(process))
        largest = max(largest, 0, *map(resident, process.children(recursive=True)))
        time.sleep(0.02)
    if running.returncode:
        raise SystemExit(f"lcl convert ended with {running.returncode}")
    return peak, largest, time.monotonic() - started


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tars", type=int, default=4, help="tars of the smaller source")
    parser.add_argument("--factor", type=int, default=20, help="how much larger the other one is")
    arguments = parser.parse_args()
    columns = ("input", "documents", "source MiB", "command MiB", "largest worker MiB", "seconds")
    table = Table(*columns, title="peak memory of lcl convert img2dataset")
    with tempfile.TemporaryDirectory() as folder:
        write_tar(Path(folder, "one.tar"))
        size = Path(folder, "one.tar").stat().st_size
        for factor in (1, arguments.factor):
            source = Path(folder, f"x{factor}")
            source.mkdir()
            tars = arguments.tars * factor
            for number in range(tars):
                os.link(Path(folder, "one.tar"), source / f"{number:05d}.tar")
            peak, worker, seconds = convert(source, Path(folder, f"out{factor}"))
            numbers = (f"{n / 2**20:.0f}" for n in (tars * size, peak, worker))
            table.add_row(f"{factor}x", f"{tars * PAIRS:,}", *numbers, f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
