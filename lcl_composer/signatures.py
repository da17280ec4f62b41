"""Constructor signatures as schemas: which values of a YAML a parameter takes.

Only annotations that a YAML value can satisfy are checked (bool, int, float, str, None, Path, Literal,
and lists, tuples, mappings and unions of them); a parameter without such an annotation takes anything.
"""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

_SCALARS = (bool, int, float, str, type(None), Path, Any)
_CONTAINERS: tuple[Any, ...] = (list, tuple, dict, Sequence, Mapping, Iterable)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def own_parameters(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the named parameters, without ``*args`` and ``**kwargs``, where typos would hide."""
    return {k: p for k, p in inspect.signature(component).parameters.items() if p.kind in _NAMED}


def check_value(component: Callable[..., Any], parameter: inspect.Parameter, value: Any) -> str | None:
    """Return what is wrong with a YAML value for a parameter, or None.

    NaN and infinity are refused wherever they stand: they turn comparisons off, and losses into NaN.
    """
    annotation = plain_annotation(component, parameter)
    try:
        read = value if annotation is None else _validate(annotation, value)
    except ValidationError:
        name = inspect.formatannotation(annotation).replace("NoneType", "None")
        return f"takes {name}, got {value!r}"
    return None if _is_finite(read) else f"takes finite numbers, got {value!r}"


def convert(component: Callable[..., Any], parameter: inspect.Parameter, value: Any) -> Any:
    """Return a checked YAML value in the annotated type: a list as a tuple, a string as a Path."""
    annotation = plain_annotation(component, parameter)
    return value if annotation is None else _validate(annotation, value)


def plain_annotation(component: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the part of a parameter's annotation that a YAML value can satisfy, or None: unchecked."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        function = component.__init__ if inspect.isclass(component) else component
        try:
            annotation = eval(annotation, getattr(inspect.unwrap(function), "__globals__", {}))
        except Exception:  # a name imported for type checkers only
            return None
    return None if annotation is inspect.Parameter.empty else _plain(annotation)


def _validate(annotation: Any, value: Any) -> Any:
    # Strict JSON mode is what a YAML needs: "false" is no bool and "1e-4" no float, but a list makes a tuple.
    return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)


def _is_finite(value: Any) -> bool:
    """Whether no number in a value, however deep, is NaN or infinite."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _plain(annotation: Any) -> Any:
    annotation = type(None) if annotation is None else annotation
    origin: Any = get_origin(annotation)
    arguments = get_args(annotation)
    if annotation in _SCALARS or annotation in _CONTAINERS or origin is Literal:
        return annotation
    if origin in (Union, types.UnionType):
        members = [m for m in map(_plain, arguments) if m is not None]
        return Union[tuple(members)] if any(m is not type(None) for m in members) else None  # noqa: UP007
    if origin in _CONTAINERS:
        members = [a if a is Ellipsis else _plain(a) for a in arguments]
        return None if None in members else origin[tuple(members)]
    return None
