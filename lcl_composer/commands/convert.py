"""`lcl convert KIND SOURCE OUT`: one sub-command a converter, made from its function's signature."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lcl_composer.registry import converters


class ConvertGroup(TyperGroup):
    """The converters of the registry as sub-commands; each is imported when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the converters' names."""
        return converters.names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the sub-command of a converter.

        Raises:
            ConfigError: There is no such converter, or it cannot be imported.
        """
        convert = converters.get(cmd_name)
        app = typer.Typer(add_completion=False)
        app.command(cmd_name, help=converters.describe(cmd_name))(as_command(convert))
        return typer.main.get_command(app)


def as_command(convert: Callable[..., Any]) -> Callable[..., None]:
    """Return the converter as a typer function that prints its report and keeps no result.

    Positional parameters become arguments and keyword-only ones options; the help is the docstring's.
    """
    signature = inspect.signature(convert, eval_str=True)
    texts = argument_texts(inspect.getdoc(convert) or "")
    parameters = []
    for name, parameter in signature.parameters.items():
        option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        info = (typer.Option if option else typer.Argument)(help=texts.get(name))
        parameters.append(parameter.replace(annotation=Annotated[parameter.annotation, info]))

    @functools.wraps(convert)
    def command(**values: Any) -> None:
        from rich.console import Console

        report = convert(**values)
        Console().print(report.table())

    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def argument_texts(docstring: str) -> dict[str, str]:
    """Return the descriptions in a Google docstring's ``Args`` by parameter."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.split(r"^ {4}(\w+): ", section[1], flags=re.MULTILINE)[1:] if section else []
    return {
        name: " ".join(text.replace("``", "").split())
        for name, text in zip(entries[::2], entries[1::2], strict=True)
    }
