"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import pytest

from lcl_composer.data.folders import whole_file, whole_folder
from lcl_composer.errors import DataError


def test_the_folder_appears_at_the_end_only(tmp_path):
    target = tmp_path / "deep" / "set"
    with whole_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert not partial.exists()


def test_what_stands_there_is_not_deleted(tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    with whole_folder(target):
        pass  # an empty folder gives way
    (target / "picture.png").write_text("1")
    for place in (target, target / "picture.png"):
        with pytest.raises(DataError, match=r"(mine|png): holds files already; choose"), whole_folder(place):
            raise AssertionError("not reached")
    assert (target / "picture.png").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_error_leaves_the_old_folder_and_the_next_run_starts_afresh(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").write_text("kept")

    def fail() -> None:
        with whole_folder(target, replace=True) as partial:
            (partial / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    (tmp_path / "set.partial").mkdir()  # what a killed process leaves
    (tmp_path / "set.partial" / "half").write_text("x")
    with whole_folder(target, replace=True) as partial:
        assert not list(partial.iterdir())
        (partial / "new").write_text("x")
    assert [p.name for p in target.iterdir()] == ["new"]


def test_two_processes_of_one_number_write_one_file(tmp_path):
    """As in two containers that share a disk; the last one stands."""
    target = tmp_path / "file"
    with whole_file(target) as first:
        first.write_text("first")
        with whole_file(target) as second:
            second.write_text("second")
            assert not target.exists()
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail() -> None:
        with whole_file(target) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
