from __future__ import annotations

from lcl_composer.dotted import leaves


def test_an_empty_mapping_and_a_list_are_values() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": None}
    assert dict(leaves(nested)) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}], "f": None}
