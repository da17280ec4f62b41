"""`lcl report`: runs side by side on one page."""

from __future__ import annotations

from pathlib import Path

import typer

from lcl_composer.errors import ConfigError, printable


def write_report(folders: list[Path], out: Path) -> None:
    """Read run folders, write the page, say where it lies.

    Raises:
        DataError: If a folder is no run folder.
        ConfigError: If the page cannot be written to ``out``.
    """
    from importlib.metadata import version

    from lcl_composer.report.report_page import render
    from lcl_composer.report.run import read_runs

    runs = read_runs(folders)
    page = render(runs, version("lcl-composer"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"report: --out {out}: cannot be written: {error.strerror}") from error
    for run in runs:
        for note in run.notes:
            typer.echo(printable(f"{run.name}: {note}"))
    typer.echo(f"{out}: {len(runs)} run{'s'[: len(runs) > 1]}, {len(page) / 1e6:.1f} MB")
