"""What a check found, and the lines of the table that findings of all nodes make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lcl_composer.errors import LCLError, one_line

#: ``fail``: the run would die or be wrong; ``warn``: it would run, perhaps not as meant.
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found on one node: its status, and what is there or what to do."""

    status: Status
    message: str


@dataclass(frozen=True)
class Line:
    """A line of the table: a check, the nodes that it is about, and what was found there."""

    check: str
    nodes: str
    finding: Finding


def ok(message: str) -> Finding:
    """It is as it should be."""
    return Finding("ok", message)


def warn(message: str) -> Finding:
    """The run would go, and this should be known."""
    return Finding("warn", message)


def fail(message: str) -> Finding:
    """The run would not go, or not be what is meant."""
    return Finding("fail", message)


def tried(check: Callable[[], Finding]) -> Finding:
    """Call a check; an error that it does not foresee is a finding too, and no reason to drop the others."""
    try:
        return check()
    except LCLError as error:
        return fail(str(error))
    except Exception as error:  # of any library
        return fail(f"could not be checked ({type(error).__name__}: {one_line(error)})")


def lines_of(check: str, found: Mapping[int, Finding], nodes: int) -> list[Line]:
    """The lines of a check: what is wrong, nodes that say the same together; all that is well in one.

    Args:
        check: Its name.
        found: Node to finding.
        nodes: Nodes of the job.
    """
    wrong: dict[Finding, list[int]] = {}
    well = [node for node, finding in found.items() if finding.status == "ok"]
    for node, finding in found.items():
        if finding.status != "ok":
            wrong.setdefault(finding, []).append(node)
    lines = [Line(check, numbers(at, nodes), finding) for finding, at in wrong.items()]
    if well:
        of_one = len({found[node] for node in well}) > 1
        message = found[well[0]].message + (f" (node {well[0]})" if of_one else "")
        lines.append(Line(check, numbers(well, nodes), ok(message)))
    return lines


def numbers(some: list[int], of: int) -> str:
    """Write numbers below ``of`` short: ``all``, or such as ``0-3, 5``."""
    if len(some) == of:
        return "all"
    runs: list[list[int]] = []
    for number in sorted(some):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def size(count: float) -> str:
    """Write bytes as kB, MB, GB or TB."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"
