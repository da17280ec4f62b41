"""The end of a conversion: one index a split over all parts, the report, and the folder in its place."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.upload import upload
from lcl_composer.convert.work import STATE, WorkFolder
from lcl_composer.convert.worker import split_folder
from lcl_composer.data.labelled import write_classes
from lcl_composer.data.sizes import join_sizes

REPORT_FILE = "conversion.json"
FAILURES_FILE = "failures.jsonl"


def merge_parts(work: WorkFolder, count: int, report: ConversionReport, folder: Path) -> None:
    """Add up the parts and write index, report and failures below ``folder``, a part in memory at a time.

    Args:
        work: The work folder, whose parts are all finished.
        count: Their number.
        report: Takes the sum of the counts.
        folder: Where the files go: ``[<split>/]index.json``, ``conversion.json``, ``failures.jsonl``, and of
            labelled images ``[<split>/]classes.json``; ``[<split>/]sizes.npy``, but for parts that an earlier
            version made without.
    """
    classes: dict[str, Counter[str]] = {}
    sizes: dict[str, list[Path]] = {}
    with ExitStack() as stack:
        failures = stack.enter_context(open(folder / FAILURES_FILE, "wb"))
        indexes: dict[str, IO[str]] = {}
        for index in range(count):
            record = json.loads(work.record(index).read_text())
            report.add(ConversionReport.from_json(record["report"]))
            with open(work.failures(index), "rb") as file:
                shutil.copyfileobj(file, failures)
            for split, counts in record.get("classes", {}).items():
                classes.setdefault(split, Counter()).update(counts)
            for split, shards in record["shards"].items():
                sizes.setdefault(split, []).append(work.sizes(index, split))
                if split not in indexes:
                    path = folder / split_folder(split) / "index.json"
                    path.parent.mkdir(exist_ok=True)
                    indexes[split] = stack.enter_context(open(path, "w"))
                _append(indexes[split], shards)
        for file in indexes.values():
            file.write('], "version": 2}')
    for split, counts in classes.items():
        write_classes(folder / split_folder(split), counts)
    for split, parts in sizes.items():
        if all(part.is_file() for part in parts):
            join_sizes(folder / split_folder(split), parts)
    report.save(folder / REPORT_FILE)


def _append(index: IO[str], shards: list[dict[str, Any]]) -> None:
    for shard in shards:
        index.write(", " if index.tell() else '{"shards": [')
        index.write(json.dumps(shard, sort_keys=True))


def put_in_place(work: WorkFolder, folder: Path, target: Path) -> None:
    """Move the files of :func:`merge_parts` to the shards, and all to ``target``, which is absent or empty.

    A process killed on the way leaves either the work folder with all its parts, or ``target`` with nothing
    but the records of the work too much: :func:`clean_up` sees to those.
    """
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        os.replace(path, work.root / path.relative_to(folder))
    os.rename(work.root, target)
    clean_up(target)


def clean_up(target: Path) -> None:
    """Remove the records of the work from a finished data set."""
    shutil.rmtree(target / STATE)


def send(work: WorkFolder, folder: Path, remote: str) -> None:
    """Upload the files of :func:`merge_parts`, the indexes last, and empty the work folder."""
    folders = [path for path in folder.iterdir() if path.is_dir()]
    for here in (*sorted(folders), folder):
        name = "" if here == folder else f"/{here.name}"
        files = sorted((p for p in here.iterdir() if p.is_file()), key=lambda p: p.name == "index.json")
        with work.scratch("upload") as scratch:
            upload(files, remote + name, scratch)
    work.forget()
