"""One YAML file: its content, and the line of every key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lcl_composer.config.core_schema import CoreLoader, parse_yaml
from lcl_composer.errors import ConfigError

MAX_BYTES = 1 << 20

#: Where a value stands in the config: its keys from the top, list positions included.
Key = tuple[str, ...]


@dataclass(frozen=True)
class YamlFile:
    """A mapping read from ``path``; ``lines`` has the line of every key in it."""

    path: Path
    content: dict[str, Any]
    lines: dict[Key, int]

    def where(self, key: Key) -> str:
        """Return ``file:line`` of a key, or of the nearest one above it."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{shown(self.path)}:{self.lines.get(key, 1)}"


def shown(path: Path) -> str:
    """Return the path as messages show it: relative when it lies below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def problem_of(error: yaml.YAMLError) -> str:
    """Return what is wrong with a YAML, on one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem:
        return str(error).splitlines()[0]
    # The end of a sentence that the context begins?
    return f"{error.context} {error.problem}" if error.problem.startswith("but ") else error.problem


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file by YAML 1.2: ``1e-4`` is a number and ``on`` is none; duplicate keys are refused.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or is no mapping; names file and line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{shown(path)}: is over {MAX_BYTES >> 20} MiB; no experiment is")
        text = path.read_text(encoding="utf-8")
        content = parse_yaml(text)
        node = yaml.compose(text, Loader=CoreLoader)
        lines = dict(_lines(node)) if node else {}
    except OSError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{shown(path)}:{line}: not valid YAML: {problem_of(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown(path)}: not valid YAML: {problem_of(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{shown(path)}: must be a mapping of keys to values")
    return YamlFile(path, content, lines)


def _lines(node: yaml.Node, key: Key = ()) -> Iterator[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield (*key, str(name.value)), name.start_mark.line + 1
            yield from _lines(value, (*key, str(name.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, str(index)), value.start_mark.line + 1
            yield from _lines(value, (*key, str(index)))
