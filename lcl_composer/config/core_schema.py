"""YAML 1.2's core schema for PyYAML, which by itself reads 1.1: ``010`` as 8, ``1_6`` as 16, ``on`` as true.

Source: https://yaml.org/spec/1.2.2/#103-core-schema. The merge key ``<<`` is kept from 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import yaml

#: Characters of a number; Python takes no whole ones of more than some thousand digits.
_LONGEST_NUMBER = 1000
#: Values of a file, each alias counted as what it stands for: a page of aliases may stand for billions.
MAX_VALUES = 100_000
_DEEPEST = 64

_TAG = "tag:yaml.org,2002:"

#: Tag, pattern, first characters and value of each kind of plain scalar; anything else is a string.
_SCALARS: list[tuple[str, str, str, Callable[[str], Any]]] = [
    ("null", r"~|null|Null|NULL|", "~nN\0", lambda text: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    ("int", r"[-+]?[0-9]+", "-+0123456789", int),
    ("int", r"0o[0-7]+|0x[0-9a-fA-F]+", "0", lambda text: int(text, 0)),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
]


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """What PyYAML looks up: by the first character, tags and their patterns in order."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {"<": [(f"{_TAG}merge", re.compile("^(?:<<)$"))]}
    for kind, pattern, first, _ in _SCALARS:
        for character in first:
            entry = (f"{_TAG}{kind}", re.compile(rf"^(?:{pattern})$"))
            table.setdefault(character.replace("\0", ""), []).append(entry)
    return table


class CoreLoader(yaml.SafeLoader):
    """Reads the core schema; a key that stands twice in a mapping, or is no scalar, is refused.

    Keys are text as it is written, ``001`` no number 1. Types that JSON lacks, such as ``!!binary``, are
    refused like any other tag.
    """

    yaml_implicit_resolvers: ClassVar = _resolvers()
    yaml_constructors: ClassVar = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, f"{_TAG}seq", f"{_TAG}map")
    }

    def flatten_mapping(self, node: Any) -> None:
        """Put in what ``<<`` merges; of a key that stands in several places the nearest counts.

        PyYAML's own takes a later of two merged mappings, or by chance the first, for the nearer. A mapping
        comes here for itself and for each that merges it.

        Raises:
            ConstructorError: At a key, or a merge, that is refused.
        """
        if getattr(node, "flat", False):
            return
        own: dict[str, tuple[Any, Any]] = {}
        merged: list[tuple[Any, Any]] | None = None
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in own:
                problem = f"found duplicate key {key.value}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            own[key.value] = key, value
            if key.tag == f"{_TAG}merge":
                merged = self._pairs(value)
            key.tag = f"{_TAG}str"
        if merged is not None:
            del own["<<"]
            inner: dict[str, tuple[Any, Any]] = {}
            for key, value in merged:
                inner.setdefault(key.value, (key, value))
            node.value = [pair for name, pair in inner.items() if name not in own] + [*own.values()]
        node.flat = True

    def _pairs(self, value: Any) -> list[tuple[Any, Any]]:
        """What a ``<<`` stands before: the pairs of a mapping, or of several, the nearest first."""
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                problem = "<< takes a mapping, or a list of them"
                raise yaml.constructor.ConstructorError(None, None, problem, source.start_mark)
            self.flatten_mapping(source)
        return [pair for source in sources for pair in source.value]


class CoreDumper(yaml.SafeDumper):
    """Quotes each string that YAML 1.1 or the core schema would take for something else."""

    yaml_implicit_resolvers: ClassVar = {
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_resolvers().get(first, [])]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_resolvers()}
    }


def _scalar(loader: CoreLoader, node: yaml.ScalarNode) -> Any:
    """The value of a plain scalar, or of one with an explicit tag (``!!int "3"``)."""
    text = str(loader.construct_scalar(node))
    for kind, pattern, _, value in _SCALARS:
        if node.tag == f"{_TAG}{kind}" and re.fullmatch(pattern, text) and len(text) <= _LONGEST_NUMBER:
            return value(text)
    raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no {node.tag}", node.start_mark)


def _text(loader: CoreLoader, node: yaml.ScalarNode) -> str:
    """A string; half of a character, as ``"\\ud800"`` makes it, can be written to no file."""
    text = str(loader.construct_scalar(node))
    if re.search("[\ud800-\udfff]", text):
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no text", node.start_mark)
    return text


for _kind in ("null", "bool", "int", "float"):
    CoreLoader.add_constructor(f"{_TAG}{_kind}", _scalar)
CoreLoader.add_constructor(f"{_TAG}str", _text)


def _string(dumper: CoreDumper, text: str) -> yaml.ScalarNode:
    """In double quotes where PyYAML would fold the text at a break of lines that YAML 1.2 does not know."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style)


CoreDumper.add_representer(str, _string)


def parse_yaml(text: str) -> Any:
    """Return the value of one YAML document.

    Raises:
        YAMLError: If it is none, is nested too deep, or stands for more than ``MAX_VALUES`` values.
    """
    try:
        node = yaml.compose(text, Loader=CoreLoader)
        size, depth = _extent(node, {}) if node is not None else (0, 0)
        if size > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases make more than {MAX_VALUES:,} values of it")
        if depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deep")
        return yaml.load(text, Loader=CoreLoader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error


def _extent(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values that a node stands for, and how deep they are nested; a node is visited once for all aliases.

    Raises:
        YAMLError: If an alias stands inside what it stands for.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1, 0
    if id(node) not in known:
        known[id(node)] = (-1, 0)  # not done yet
        pairs = isinstance(node, yaml.MappingNode)
        inner = [value for pair in node.value for value in pair] if pairs else node.value
        extents = [_extent(value, known) for value in inner]
        known[id(node)] = (1 + sum(n for n, _ in extents), 1 + max((d for _, d in extents), default=0))
    elif known[id(node)][0] < 0:
        raise yaml.YAMLError("an alias stands inside what it stands for")
    return known[id(node)]


def format_yaml(values: Any) -> str:
    """Return a value as YAML in block style, mappings in their order; `parse_yaml` gives it back."""
    return yaml.dump(values, Dumper=CoreDumper, sort_keys=False, allow_unicode=True)
