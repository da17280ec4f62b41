"""The engine of every converter: a source's parts through worker processes to one MDS data set."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lcl_composer.convert.cluster import open_cluster
from lcl_composer.convert.machines import Home, package_versions
from lcl_composer.convert.pools import RemoteTask, local_pool, run_parts
from lcl_composer.convert.progress import Progress
from lcl_composer.convert.referred import Referred
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.result import FAILURES_FILE, REPORT_FILE, clean_up, merge_parts, put_in_place, send
from lcl_composer.convert.source import Source
from lcl_composer.convert.upload import check_remote, is_remote
from lcl_composer.convert.work import STATE, WorkFolder
from lcl_composer.convert.worker import Job, convert_part
from lcl_composer.errors import ConfigError, DataError, one_line


def convert(
    source: Source,
    out: str,
    *,
    held_out: float = 0.0,
    workers: int | None = None,
    work: Path | None = None,
    shard_size: int = 1 << 26,
    progress: bool = True,
    cluster: str | None = None,
) -> ConversionReport:
    """Convert a source into MDS shards of Documents.

    Killed at any point and started again with the same settings, it goes on from the parts that are
    finished and ends with the same bytes.

    Args:
        source: What to convert, with its options.
        out: Folder for the data set, or a remote that Streaming writes to (``s3://``, ``gs://``, ...). With
            ``held_out`` it has the sub-folders ``train`` and ``held_out``, for sources with splits those.
        held_out: Share of the documents to hold out, chosen by a hash of their id, or of their caption, so
            that none of training stands among those held out.
        workers: Processes; None for one a CPU core.
        work: Folder on this machine for unfinished work, emptied at the end; needed for a remote. Shards
            are uploaded from it as parts are finished. None for OUT.partial.
        shard_size: Bytes a shard before compression.
        progress: Show a progress bar.
        cluster: Scheduler of dask.distributed whose workers convert the parts: an address
            (``tcp://host:8786``) or its scheduler file. All machines must share source and work folder.

    Raises:
        ConfigError: If an option is out of range, ``out`` is no name, or no scheduler answers.
        DataError: If the source is not there or gives no document, ``out`` exists already, or a conversion
            with other settings was begun.
    """
    source.check()
    _check_options(source, out, held_out, workers, shard_size)
    _check_cluster(cluster, workers, out, work)
    options = {**source.options(), "held_out": held_out, "shard_size": shard_size}
    report = ConversionReport(source.kind, str(source.source), options, package_versions())
    remote = out.rstrip("/") if work is not None or is_remote(out) else None
    job = Job(source, _work_root(out, work), remote, held_out, shard_size)
    try:
        return _convert(job, out, report, cluster or workers or _cores(), progress)
    except OSError as error:
        where, what = error.filename or out, error.strerror or one_line(error)
        raise DataError(
            f"{where}: {what}; see to the disk and the path, then start again to continue"
        ) from error


def _convert(
    job: Job, out: str, report: ConversionReport, workers: int | str, progress: bool
) -> ConversionReport:
    """Convert what is not finished and put it together; return the report."""
    started = time.monotonic()
    target = Path(out)
    if job.remote is None and target.exists():
        if finished := _finished(target, report):
            return finished
        _check_free(target)
    folder = WorkFolder(job.root)
    with folder.locked():
        if job.remote is not None and not folder.started:
            with folder.scratch("remote") as empty:
                check_remote(job.remote, empty)
        count = folder.begin({**_identity(report), "out": out}, job.source)
        _convert_parts(job, folder, count, workers, progress)
        with folder.scratch("result") as result:
            report.referred = Referred.load(folder.all_referred())
            job.source.survey(report)
            merge_parts(folder, count, report, result)
            _check_splits(report, job, folder, result)
            if job.remote is None:
                put_in_place(folder, result, target)
            else:
                send(folder, result, job.remote)
    report.seconds = time.monotonic() - started
    return report


def _check_free(target: Path) -> None:
    """Refuse a folder that the finished one cannot take the place of."""
    if not target.is_dir() or any(target.iterdir()):
        raise DataError(f"{target}: exists already; remove it or name another folder")
    if target.is_mount() or target.is_symlink():
        raise DataError(f"{target}: is a mount or a link; name a folder in it, or one for --work elsewhere")


def _cores() -> int:
    """Return the cores that this process may use, which a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_options(source: Source, out: str, held_out: float, workers: int | None, shard_size: int) -> None:
    if not is_remote(out) and Path(out).name in ("", ".."):
        raise ConfigError(f"OUT is {out!r}, which names no new folder; use a name such as data/{source.kind}")
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out is {held_out}; use a share of the documents, 0 or more and below 1")
    if held_out and source.has_splits:
        raise ConfigError(
            f"held_out is {held_out}; {source.kind} data have splits of their own, leave it out"
        )
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; use 1 or more")
    if not 1 << 10 <= shard_size < 1 << 32:
        raise ConfigError(f"shard_size is {shard_size}; use 1 KiB to 4 GiB")


def _check_cluster(cluster: str | None, workers: int | None, out: str, work: Path | None) -> None:
    if cluster is None:
        return
    if workers is not None:
        raise ConfigError(f"workers is {workers}, which are this machine's; with --cluster leave it out")
    if work is not None and not is_remote(out):
        raise ConfigError(
            f"{out}: with --cluster leave --work out, as unfinished work lies beside OUT on the file system "
            "that all share; --work is for remotes such as s3://"
        )


def _work_root(out: str, work: Path | None) -> Path:
    if work is not None:
        return work
    if is_remote(out):
        raise DataError(f"{out} is a remote: name a local folder for unfinished work with --work")
    return Path(out).with_name(Path(out).name + ".partial")


def _identity(report: ConversionReport) -> dict[str, Any]:
    """Return what must be the same for a conversion to go on."""
    facts = report.to_json()
    return {name: facts[name] for name in ("kind", "source", "options", "versions")}


def _finished(target: Path, report: ConversionReport) -> ConversionReport | None:
    """Finish a conversion that was killed while it tidied up; return its report, or None."""
    if not (target / STATE).is_dir():
        return None
    found = ConversionReport.load(target / REPORT_FILE)
    if _identity(found) != json.loads(json.dumps(_identity(report))):
        return None
    clean_up(target)
    return found


def _check_splits(report: ConversionReport, job: Job, folder: WorkFolder, result: Path) -> None:
    """Refuse a result without documents; there is nothing to take up again then.

    Raises:
        DataError: If nothing was kept, or nothing held out or left for training.
    """
    empty = [split for split in ("train", "held_out") if job.held_out and not report.kept[split]]
    if report.documents and not empty:
        return
    failures = folder.root.with_name(folder.root.name.removesuffix(".partial") + ".failures.jsonl")
    if not report.documents and report.named:
        shutil.copyfile(result / FAILURES_FILE, failures)
    shutil.rmtree(folder.root, ignore_errors=True)
    if report.documents:
        raise DataError(f"{report.source}: no document falls to {empty[0]}; use another held-out share")
    if not report.named:
        raise DataError(_nothing_found(report, job.source))
    causes = (report.dropped + report.broken + report.dropped_images).most_common(3)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in causes)
    first = ", ".join(f"{report.named[reason][0]} ({reason})" for reason, _ in causes)
    hint = f"; {job.source.hint}" if job.source.hint else ""
    raise DataError(
        f"{report.source}: none of {report.read} documents kept: {reasons}; the first: {first}; "
        f"all are in {failures}{hint}"
    )


def _nothing_found(report: ConversionReport, source: Source) -> str:
    if (part := next(source.parts(), None)) is not None:
        return f"{report.source}: holds no record; the first file that was read is {part.files[0]}"
    found = ", ".join(f"{what} ({count})" for what, count in report.passed_over.most_common(5))
    return (
        f"{report.source}: found nothing to read; {source.kind} looks for {source.looks_for}, "
        f"here are {found or 'no other files'}"
    )


def _convert_parts(job: Job, folder: WorkFolder, count: int, workers: int | str, show: bool) -> None:
    """Convert the parts that are not finished: in so many processes, or by the workers of a scheduler."""
    finished = folder.finished(count)
    parts, left = folder.parts(finished), finished.count(0)
    with Progress(job.source.kind, count, count - left, show) as bar, ExitStack() as stack:
        if isinstance(workers, str) and left:
            task = RemoteTask(job, Home.here(job, stack.enter_context(folder.scratch("run"))))
            run_parts(stack.enter_context(open_cluster(workers, task)), parts, bar)
        elif isinstance(workers, int) and min(workers, left) > 1:
            run_parts(stack.enter_context(local_pool(job, min(workers, left))), parts, bar)
        else:
            for index, part in parts:
                convert_part(job, index, part, bar.count_document)
                bar.count_part()
