"""Time and memory to plan and to end a conversion of very many parts, on made-up listings.

    python benchmarks/convert_plan.py --tars 300000 [--folder /mnt/shared/scratch]

The tars are empty files of the names that img2dataset gives, each with its .parquet; nothing in them is read.
`plan` writes the plan, `again` checks it at a restart and finds what is finished, `merge` adds up the counts
of parts that are all finished. Each runs in a process of its own, whose peak of memory is shown.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.result import merge_parts
from lcl_composer.convert.work import WorkFolder

STEPS = ("import", "plan", "again", "merge")


def write_listing(folder: Path, tars: int, folders: int) -> None:
    """Write empty tars and tables, in one folder or spread evenly over several."""
    for number in range(tars):
        here = folder / f"{number * folders // tars:03d}" if folders > 1 else folder
        if number * folders % tars < folders:
            here.mkdir(parents=True, exist_ok=True)
        for suffix in ("tar", "parquet"):
            (here / f"{number:06d}.{suffix}").touch()


def write_records(work: WorkFolder, count: int) -> None:
    """Write what finished parts leave: counts, one shard, one failure."""
    report = ConversionReport("img2dataset", "laion", {})
    report.kept["all"] = 9000
    report.dropped["not a known image format"] = 1
    for value in range(300):  # distinct numbers of words and tokens
        report.words.counts[value] = report.tokens.counts[value] = 30
    shard = {"basename": "00000/shard.00000.mds.zstd", "bytes": 1 << 25, "hashes": {"xxh64": "0" * 16}}
    entry = {"column_names": ["id", "images"], "format": "mds", "samples": 9000, "zip_data": shard}
    text = json.dumps({"report": report.to_json(), "shards": {"all": [entry] * 5}})
    for index in range(count):
        work.record(index).write_text(text)
        work.failures(index).write_text('{"sample": "00000/000000", "reason": "not a known image format"}\n')


def run_step(step: str, folder: Path) -> dict[str, float]:
    """Run one step in this process; return seconds and MiB."""
    source, work = Img2Dataset(folder / "laion"), WorkFolder(folder / "out.partial")
    started, count = (time.perf_counter(), time.process_time()), 0
    with work.locked():
        if step in ("plan", "again"):
            count = work.begin({}, source)
            next(work.parts(work.finished(count)), None)
        elif step == "merge":
            count = (work.state / "plan.jsonl").read_bytes().count(b"\n")
            with work.scratch("result") as result:
                merge_parts(work, count, ConversionReport("img2dataset", "laion", {}), result)
    return {
        "seconds": time.perf_counter() - started[0],
        "CPU seconds": time.process_time() - started[1],
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Run the steps for each number of folders and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tars", type=int, default=300_000)
    parser.add_argument("--folders", type=int, nargs="+", default=[1, 300])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if absent")
    parser.add_argument("--steps", choices=STEPS, nargs="+", default=STEPS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run_step(options.step, options.folder)))
        return
    print("| tars | folders | step | seconds | of CPU | peak MiB |\n| --- | --- | --- | --- | --- | --- |")
    for folders in options.folders:
        scratch = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            write_listing(scratch / "laion", options.tars, folders)
            for step in options.steps:
                if step == "merge":
                    write_records(WorkFolder(scratch / "out.partial"), options.tars)
                command = [sys.executable, __file__, "--step", step, "--folder", str(scratch)]
                facts = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                times = f"{facts['seconds']:.1f} | {facts['CPU seconds']:.1f}"
                print(f"| {options.tars:,} | {folders} | {step} | {times} | {facts['MiB']:.0f} |", flush=True)
        finally:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
