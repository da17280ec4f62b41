from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lcl_composer.config.core_schema import format_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [  # the table of the specification, section 10.3.2, and what YAML 1.1 reads otherwise
        ("~", None),
        ("", None),
        ("True", True),
        ("0o7", 7),
        ("0x3A", 58),
        ("-19", -19),
        ("010", 10),
        ("08", 8),
        ("0.", 0.0),
        (".5", 0.5),
        ("12e03", 12000.0),
        ("-2E+05", -200000.0),
        ("-.Inf", -math.inf),
        ("off", "off"),
        ("1_6", "1_6"),
        ("0b11", "0b11"),
        ("20:30", "20:30"),
        ("2001-01-01", "2001-01-01"),
        ("'010'", "010"),
        ("!!int '3'", 3),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "duplicate key a"),
        ("? [x]\n: 1", "must be a word"),
        ("!!int x", "is no"),
        ("a: !!binary aGk=", "could not determine a constructor for the tag"),
        ("a: !!set {x, y}", "could not determine a constructor for the tag"),
        ("a: !!timestamp 2020-01-01", "could not determine a constructor for the tag"),
        ("<<: {a: 1}\n<<: {b: 1}", "duplicate key <<"),
        ("<<: 3", "<< takes a mapping"),
        ('a: "\\ud800"', "is no text"),
        ("<<: [{a: 1}, 3]", "<< takes a mapping"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match=problem):
        parse_yaml(text)


def test_merge_keys() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}
    several = parse_yaml("a: &a {name: 1, z: 2}\nb: &b {name: 3, y: 4}\nc: {<<: [*a, *b], y: 5}")
    assert [*several["c"].items()] == [("name", 1), ("z", 2), ("y", 5)]


@pytest.mark.parametrize("key", ["k", "key"])
def test_a_merge_of_a_merge_takes_the_nearest(key: str) -> None:
    text = f"b: &b {{{key}: 1}}\nx:\n  a: &a {{<<: *b, {key}: 2}}\ny: {{<<: *a}}"
    assert parse_yaml(text) == {"b": {key: 1}, "x": {"a": {key: 2}}, "y": {key: 2}}


def test_keys_are_text_as_it_is_written() -> None:
    assert parse_yaml("001: a\n1: b\ntrue: c\n1e3: d") == {"001": "a", "1": "b", "true": "c", "1e3": "d"}


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse_yaml(format_yaml(value)) == value


@pytest.mark.parametrize("break_", ["\n", "\r", "\r\n", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("form", ["{}", "a{}", "{}a", "a{}b", "a {} b", "{0}{0}", "'{}\"", "#{}"])
def test_line_breaks_are_kept(break_: str, form: str) -> None:
    text = form.format(break_)
    assert parse_yaml(format_yaml({text: [text, {text: text}]})) == {text: [text, {text: text}]}


@pytest.mark.parametrize("text", ["on", "010", "1_6", "1e5", "0o7"])
def test_ambiguous_strings_are_quoted(text: str) -> None:
    """So that readers of YAML 1.1 see a string too."""
    assert yaml.safe_load(format_yaml([text])) == [text]
