from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from lcl_composer.signatures import check_value, convert, own_parameters

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


class Component:
    def __init__(
        self,
        number: float,
        count: int,
        flag: bool,
        text: str,
        path: Path,
        pair: tuple[float, float],
        mode: Literal["a", "b"],
        either: int | str | None,
        folder: str | Path,
        items: Sequence[str],
        settings: dict[str, Any],
        function: Callable[[], None],
        time: int | Component,
        maybe: Component | None,
        hidden: Unknown,
        bare=3,
        *args: Any,
        **kwargs: Any,
    ):
        pass


PARAMETERS = own_parameters(Component)


def complaint(name: str, value: Any) -> str | None:
    return check_value(Component, PARAMETERS[name], value)


def test_catch_alls_are_no_parameters() -> None:
    assert next(iter(PARAMETERS)) == "number"
    assert "args" not in PARAMETERS
    assert "kwargs" not in PARAMETERS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("number", 1),
        ("number", 1e-4),
        ("count", 3),
        ("flag", False),
        ("path", "a/b"),
        ("pair", [0.9, 0.98]),
        ("mode", "a"),
        ("either", None),
        ("either", "x"),
        ("items", ["x"]),
        ("settings", {"depth": 4}),
        ("function", "unchecked"),
        ("time", 3),
        ("maybe", "unchecked"),
        ("hidden", "unchecked"),
        ("bare", "unchecked"),
    ],
)
def test_right_values_pass(name: str, value: Any) -> None:
    assert complaint(name, value) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("number", "1e-4", "takes float, got '1e-4'"),
        ("number", True, "takes float, got True"),
        ("count", 1.5, "takes int, got 1.5"),
        ("count", True, "takes int, got True"),
        ("flag", "false", "takes bool, got 'false'"),
        ("flag", 0, "takes bool, got 0"),
        ("text", 3, "takes str, got 3"),
        ("text", None, "takes str, got None"),
        ("pair", [0.9], "got [0.9]"),
        ("mode", "c", "got 'c'"),
        ("either", [1], "got [1]"),
        ("settings", 3, "got 3"),
        ("time", "3ba", "takes int, got '3ba'"),
    ],
)
def test_wrong_values_are_told(name: str, value: Any, message: str) -> None:
    assert message in (complaint(name, value) or "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["number", "either", "pair", "items", "settings", "function", "bare"])
def test_no_number_is_nan_or_infinite(name: str, value: float) -> None:
    inside = {"pair": [0.9, value], "items": [value], "settings": {"a": {"b": [value]}}}.get(name, value)
    assert "got " in (complaint(name, inside) or "")


def test_a_number_too_large_for_a_float_is_infinite() -> None:
    assert "takes finite numbers" in (complaint("number", 10**400) or "")


def test_values_come_in_the_annotated_type() -> None:
    assert convert(Component, PARAMETERS["pair"], [0.9, 0.98]) == (0.9, 0.98)
    assert convert(Component, PARAMETERS["path"], "a/b") == Path("a/b")
    assert convert(Component, PARAMETERS["folder"], "a/b") == "a/b"


def test_functions_have_signatures_too() -> None:
    def convert_pages(pages: Path, *, min_side: int = 64) -> None:
        del pages, min_side

    parameters = own_parameters(convert_pages)
    assert check_value(convert_pages, parameters["min_side"], "64") == "takes int, got '64'"
    assert parameters["pages"].default is inspect.Parameter.empty
