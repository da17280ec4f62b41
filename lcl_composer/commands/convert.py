"""`lcl convert KIND SOURCE OUT`: one sub-command a converter, its options read off the code."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, get_type_hints

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
        source = converters.get(cmd_name)
        app = typer.Typer(add_completion=False)
        app.command(cmd_name, help=converters.describe(cmd_name))(as_command(source))
        return typer.main.get_command(app)


def as_command(source: Any) -> Any:
    """Return a converter's source class as a typer function that converts and prints the report.

    Its fields come first, then the options of the engine that all converters share; positional parameters
    become arguments and keyword-only ones options, and the docstrings their help.
    """
    from lcl_composer.convert.engine import convert

    own = list(inspect.signature(source).parameters.values())
    shared = list(inspect.signature(convert).parameters.values())[1:]
    hints = {**get_type_hints(convert), **get_type_hints(source)}
    texts = argument_texts(inspect.getdoc(convert) or "")
    for base in reversed(source.__mro__):
        texts |= argument_texts(inspect.cleandoc(base.__doc__ or ""))
    parameters = []
    for parameter in sorted([*own, *shared], key=lambda p: p.kind):  # stable: SOURCE OUT, then options
        option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        info = (typer.Option if option else typer.Argument)(help=texts.get(parameter.name))
        parameters.append(parameter.replace(annotation=Annotated[hints[parameter.name], info]))
    names = {parameter.name for parameter in own}

    def command(**values: Any) -> None:
        from rich.console import Console

        chosen: dict[str, Any] = {
            name: value or None if value == [] else value for name, value in values.items()
        }
        report = convert(
            source(**{name: value for name, value in chosen.items() if name in names}),
            **{name: value for name, value in chosen.items() if name not in names},
        )
        Console().print(report.table())

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
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
