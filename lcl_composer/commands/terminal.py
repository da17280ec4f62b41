"""Tables of which nothing is cut: folded in a terminal, as wide as they need to be in a file or a pipe."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Column, Table

#: Wider than any table: rich makes a table no wider than its content.
_UNLIMITED = 10_000


def console() -> Console:
    """Return a console on standard output; COLUMNS sets its width everywhere."""
    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=_UNLIMITED)


def folding_table(*headers: str, title: str | None = None, show_lines: bool = False) -> Table:
    """Return a table that breaks long words instead of cutting them, its title on the left."""
    columns = (Column(header, overflow="fold") for header in headers)
    return Table(*columns, title=title, title_justify="left", show_lines=show_lines)
