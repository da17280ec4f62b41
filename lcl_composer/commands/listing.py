"""`lcl list`: the components of a kind, drop-ins included."""

from __future__ import annotations

import inspect
from typing import Any

from rich.markup import escape

from lcl_composer.commands.terminal import console, folding_table
from lcl_composer.errors import ConfigError, did_you_mean
from lcl_composer.registry import REGISTRIES, Registry


def print_kinds() -> None:
    """Print the kinds of components and their names; imports none."""
    table = folding_table("kind", "names")
    for kind, registry in REGISTRIES.items():
        table.add_row(kind, ", ".join(registry.names()))
    console().print(table)


def print_components(kind: str) -> None:
    """Print a kind's components. One that cannot be imported shows its error in its row.

    Raises:
        ConfigError: There is no such kind.
    """
    registry = REGISTRIES.get(kind.replace("-", "_"))
    if registry is None:
        raise ConfigError(f"list: unknown kind {kind!r}; {did_you_mean(kind, REGISTRIES)}")
    table = folding_table("name", "parameters", "what it does", show_lines=True)
    for name in registry.names():
        table.add_row(name, *_row(registry, name))
    console().print(table)


def _row(registry: Registry[Any], name: str) -> tuple[str, str]:
    try:
        parameters = registry.parameters(name).values()
        return escape("\n".join(map(_parameter, parameters))), escape(registry.describe(name))
    except ConfigError as error:
        return "", f"[red]{escape(str(error))}[/red]"


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return f"{parameter.name} (needed)"
    return f"{parameter.name}: {parameter.default!r}"
