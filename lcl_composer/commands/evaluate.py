"""`lcl evaluate`: encoders through a suite of tasks, or a linear probe of each on two image folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lcl_composer.errors import ConfigError

if TYPE_CHECKING:
    from lcl_composer.entrants import Entrant
    from lcl_composer.report.transfer import Entry
    from lcl_composer.suite import Job


#: Encoders that fit beside each other into a terminal of 80 columns.
_SIDE_BY_SIDE = 4


def evaluate_suite(
    encoders: Sequence[str],
    suite: Path,
    out: Path | None,
    seeds: Sequence[int],
    settings: Sequence[str],
    ranks: int,
) -> None:
    """Train every task of a suite on every encoder, then write ``results.json`` and ``index.html``.

    Args:
        encoders: As :func:`lcl_composer.entrants.read_entrants` takes them.
        suite: Folder of YAMLs, or one of them.
        out: Folder of the results; None: ``runs/transfer/SUITE``, of one YAML ``runs/transfer/SUITE-TASK``.
        seeds: Seeds of each task; none: the YAML's.
        settings: ``a.b=c`` for all tasks.
        ranks: Processes of each training.

    Raises:
        ConfigError: If there is nothing to evaluate, or the results cannot be written.
        DataError: If an encoder's folder holds none.
        typer.Exit: 1 if a task failed; the others have run.
    """
    from lcl_composer.entrants import read_entrants
    from lcl_composer.suite import plan, run_jobs

    entrants = read_entrants(encoders)
    jobs = plan(entrants, suite, seeds, settings)
    task = "" if suite.is_dir() else f"-{suite.stem}"
    out = out or Path("runs/transfer") / f"{jobs[0].suite}{task}"
    run_jobs(jobs, ranks)
    write_results(entrants, jobs, out)
    failed = [job for job in jobs if job.failure]
    for job in failed:
        typer.echo(f"{job.title} failed: {job.failure}", err=True)
    if failed:
        raise typer.Exit(1)


def write_results(entrants: Sequence[Entrant], jobs: Sequence[Job], out: Path) -> None:
    """Gather the runs of jobs that have run, write file and page, and say where they lie.

    Where none has run, what an earlier command found stays.

    Raises:
        ConfigError: If they cannot be written.
    """
    from importlib.metadata import version

    from lcl_composer.report.transfer import read_entry, results_of
    from lcl_composer.report.transfer_page import render

    entries = [
        read_entry(job.entrant.label, job.task.stem, Path("runs") / job.run_name)
        for job in jobs
        if not job.failure
    ]
    named = [{"label": e.label, "settings": e.spec, "digest": e.digest} for e in entrants]
    failures = [
        {"encoder": j.entrant.label, "task": j.task.stem, "reason": j.failure} for j in jobs if j.failure
    ]
    if not entries and (out / "results.json").exists():
        typer.echo(f"0 of {len(jobs)} runs; {out / 'results.json'} stays as it was")
        return
    results = results_of(entries, named, failures)
    page = render(entries, results, version("lcl-composer"))
    _write(out, {"results.json": json.dumps(results, indent=1) + "\n", "index.html": page})
    if entries:
        _print(entries, results)
    typer.echo(f"{out / 'index.html'}: {len(entries)} of {len(jobs)} runs; numbers in {out / 'results.json'}")


def _print(entries: Sequence[Entry], results: dict[str, Any]) -> None:
    """The table of the page, for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lcl_composer.report.transfer_page import rows_of

    labels = list(dict.fromkeys(encoder["label"] for encoder in results["encoders"]))
    side_by_side = len(labels) <= _SIDE_BY_SIDE
    table = Table(title="Encoders by tasks", title_justify="left", title_style="bold")
    table.add_column("Task")
    for head in labels if side_by_side else ("Encoder", "Result"):
        table.add_column(Text(head), justify="right")
    for task in dict.fromkeys(entry.task for entry in entries):
        rows = rows_of(entries, labels, task)
        for row in rows:
            cells = [Text(cell.text, style="bold" if cell.mark == "best" else "") for cell in row.cells]
            about = ", ".join(filter(None, (row.unit, row.note)))
            name = Text(f"{row.group}: {row.label}" + (f" ({about})" if about else ""))
            if side_by_side:
                table.add_row(name, *cells, end_section=row is rows[-1])
                continue
            for label, cell in zip(labels, cells, strict=True):
                first, last = label == labels[0], label == labels[-1]
                table.add_row(name if first else "", Text(label), cell, end_section=last)
    Console().print(table)


def probe(encoders: Sequence[str], train: str, val: str, features: Any, out: Path | None) -> None:
    """Print the accuracy of a linear probe of each encoder, frozen, beside the same one untrained; write all.

    Args:
        encoders: As :func:`lcl_composer.entrants.read_entrants` takes them.
        train: Labelled images to fit on.
        val: Labelled images to measure on.
        features: ``patch_mean`` or ``pooled``.
        out: Folder of ``results.json``; None: ``runs/transfer/probe``.

    Raises:
        ConfigError: If an encoder is none, or the results cannot be written.
        DataError: If an encoder or an image folder is missing or damaged.
    """
    from lcl_composer.entrants import read_entrants
    from lcl_composer.evaluation.frozen import evaluate_frozen
    from lcl_composer.models.encoder import in_a_line
    from lcl_composer.report.transfer import provenance

    results: list[dict[str, Any]] = []
    for entrant in read_entrants(encoders):
        found = evaluate_frozen(entrant.spec, train, val, features)
        numbers = {"untrained": found.untrained.accuracy, "chance": found.untrained.chance}
        if found.trained is not None:
            numbers = {"trained": found.trained.accuracy, **numbers}
        shown = ", ".join(f"{name} {value:.1%}" for name, value in numbers.items())
        typer.echo(f"{entrant.label}: {shown}\n  {in_a_line(found.description)}")
        named = {"encoder": entrant.label, "settings": entrant.spec, "digest": entrant.digest}
        results.append({**named, "numbers": numbers, "features": found.description})
    out = out or Path("runs/transfer/probe")
    read = {"train": train, "val": val, "features": features}
    content = {**provenance(), "probe": read, "results": results}
    _write(out, {"results.json": json.dumps(content, indent=1) + "\n"})
    typer.echo(f"{out / 'results.json'}: {len(results)} encoders")


def _write(out: Path, texts: dict[str, str]) -> None:
    """Write files that are whole, whatever becomes of the disk; raises ConfigError."""
    from lcl_composer.data.folders import whole_file

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with whole_file(out / name) as partial:
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
