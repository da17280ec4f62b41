"""`lcl check --preflight`: one table on rank 0 about all nodes, and an exit code for scripts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape

from lcl_composer.commands.terminal import console, folding_table
from lcl_composer.errors import ConfigError, LCLError
from lcl_composer.preflight.finding import Line
from lcl_composer.preflight.world import World

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def run_preflight(path: Path, overrides: Sequence[str], wait: float) -> int:
    """Check this rank's part; rank 0 prints the table.

    Args:
        path: The experiment's YAML.
        overrides: ``a.b=c`` settings laid over it.
        wait: Seconds to wait for ranks that start later.

    Returns:
        The same on every rank: 0: the run can start; 1: something has to be mended; 2: ranks are missing.
    """
    # torch's own store logs each attempt to connect, with a stack of C++ frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    world = World.detect()
    from lcl_composer.preflight.run import Preflight, exit_code

    preflight = Preflight(path, overrides, world, wait)
    if world.rank:
        return preflight.other_rank()
    code = 2
    try:
        lines = preflight.first_rank()
        print_table(lines)
        code = exit_code(lines)
    except ConfigError:
        code = 1
        raise
    finally:
        preflight.end(code)
    return code


def print_table(lines: Sequence[Line]) -> None:
    """Print all lines, what has to be done last, where it is seen."""
    table = folding_table("check", "nodes", "", "found", title="Preflight")
    order = {"ok": 0, "warn": 1, "fail": 2}
    for line in sorted(lines, key=lambda line: order[line.finding.status]):
        status, message = line.finding.status, line.finding.message
        table.add_row(line.check, line.nodes, f"[{_COLOURS[status]}]{status}[/]", escape(message))
    console().print(table)
    wrong = sum(line.finding.status == "fail" for line in lines)
    doubtful = sum(line.finding.status == "warn" for line in lines)
    said = f"{wrong} to mend, {doubtful} to know" if wrong or doubtful else "all well"
    console().print(f"preflight: {said}", highlight=False)


def preflight_and_exit(path: Path, overrides: Sequence[str], wait: float) -> None:
    """Run it and end the process with its code.

    Under a launcher at once, as nothing can be taken down that another rank may hang in: gloo's and NCCL's
    threads would be waited for.
    """
    try:
        code = run_preflight(path, overrides, wait)
    except LCLError as error:
        if "RANK" not in os.environ:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 1 if isinstance(error, ConfigError) else 2
    if "RANK" not in os.environ:
        raise typer.Exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
