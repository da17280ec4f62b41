from __future__ import annotations

from lcl_composer.errors import DataError
from lcl_composer.preflight.finding import fail, lines_of, numbers, ok, size, tried, warn


def test_nodes_that_say_the_same_make_one_line() -> None:
    found = {0: ok("8 free"), 1: fail("full"), 2: fail("full"), 3: warn("odd"), 4: ok("9 free")}
    lines = {(line.nodes, line.finding) for line in lines_of("disk", found, 5)}
    assert lines == {("1-2", fail("full")), ("3", warn("odd")), ("0, 4", ok("8 free (node 0)"))}


def test_numbers_are_short() -> None:
    assert numbers([0, 1, 2, 3], 4) == "all"
    assert numbers([7, 1, 2, 3, 5], 8) == "1-3, 5, 7"


def test_bytes_are_readable() -> None:
    assert [size(n) for n in (64_000, 3.2e6, 80e9, 1.5e12, 0)] == [
        "64 kB",
        "3.2 MB",
        "80 GB",
        "1.5 TB",
        "0 kB",
    ]


def test_an_error_is_a_finding() -> None:
    def broken() -> None:
        raise DataError("shard 3 is damaged")

    assert tried(broken) == fail("shard 3 is damaged")  # pyright: ignore[reportArgumentType]
    assert tried(lambda: [][1]).status == "fail"
    assert "IndexError" in tried(lambda: [][1]).message
