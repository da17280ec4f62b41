from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcl_composer.dropins import DropIns
from lcl_composer.errors import ConfigError
from lcl_composer.registry import REGISTRIES, Registry

GOOD = """
class NewIdea:
    '''An idea.

    More.'''

    def __init__(self, every: str = "1ba"):
        self.every = every
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with an empty drop-in folder under a package name of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ideas").mkdir()
    yield tmp_path / "ideas"
    for name in [n for n in sys.modules if n == "ideas" or n.startswith("ideas.")]:
        del sys.modules[name]


def registry() -> Registry:
    return Registry("callback", {"built_in": "composer.callbacks:LRMonitor"}, dropins="ideas")


def test_the_named_file_is_imported_and_no_other(folder: Path) -> None:
    (folder / "new_idea.py").write_text(GOOD)
    (folder / "broken.py").write_text("raise RuntimeError('imported')")
    component = registry().build({"name": "new_idea", "every": "5ba"})
    assert (type(component).__module__, component.every) == ("ideas.new_idea", "5ba")
    assert "ideas.broken" not in sys.modules


def test_dropins_are_checked_and_listed_like_any_other(folder: Path) -> None:
    (folder / "new_idea.py").write_text(GOOD)
    (folder / "_helper.py").write_text("")
    table = registry()
    assert table.names() == ["built_in", "new_idea"]
    assert table.describe("new_idea") == "An idea."
    problem = table.problems({"name": "new_idea", "evry": "5ba"})[0]
    assert (problem.key, problem.message) == (
        "evry",
        "unknown parameter of callback 'new_idea'; did you mean 'every'?",
    )


def test_a_name_can_be_misspelt(folder: Path) -> None:
    (folder / "new_idea.py").write_text(GOOD)
    with pytest.raises(ConfigError, match="unknown callback 'new_idee'; did you mean 'new_idea'"):
        registry().get("new_idee")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\nimport absent_package\n",
            "broken.py:2: callback 'broken' cannot be imported: ModuleNotFoundError",
        ),
        ("x = 1\nx = (\n", "broken.py:2: callback 'broken' cannot be imported: SyntaxError"),
        ("class Other:\n    pass\n", "broken.py must define class Broken; it defines Other"),
        ("x = 1\n", "broken.py must define class Broken; it defines no class"),
    ],
)
def test_a_broken_file_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "broken.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        registry().get("broken")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Broken:\n    pass\n", "class Broken is no callback; derive it from Callback of composer"),
        (
            "from lcl_composer.callbacks.periodic import Periodic\nclass Broken(Periodic):\n    pass\n",
            "class Broken lacks act; write it there",
        ),
    ],
)
def test_a_class_is_what_the_base_asks_for(folder: Path, text: str, message: str) -> None:
    (folder / "broken.py").write_text(text)
    table = Registry("callback", {}, dropins="ideas", base="composer:Callback")
    assert [p.message for p in table.problems({"name": "broken"})] == [f"{folder / 'broken.py'}: {message}"]


def test_an_error_in_the_constructor_has_file_and_line(folder: Path) -> None:
    (folder / "broken.py").write_text("class Broken:\n    def __init__(self):\n        {}['x']\n")
    with pytest.raises(ConfigError) as caught:
        registry().build({"name": "broken"})
    assert str(caught.value) == f"{folder / 'broken.py'}:3: callback 'broken': KeyError: 'x'"


@pytest.mark.parametrize("kind", ["methods", "callbacks"])
def test_every_entry_has_the_base_of_its_drop_ins(kind: str) -> None:
    table = REGISTRIES[kind]
    assert table.dropins is not None
    assert table.dropins.base is not None
    module, _, name = table.dropins.base.partition(":")
    base = getattr(importlib.import_module(module), name)
    assert all(issubclass(table.get(entry), base) for entry in table.entries)  # type: ignore[arg-type]


def test_a_file_may_not_hide_a_built_in(folder: Path) -> None:
    (folder / "built_in.py").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"built_in\.py: the name 'built_in' already is a callback"):
        registry().get("built_in")


def test_two_folders_may_not_share_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder.parent / "checkout" / "ideas"
    other.mkdir(parents=True)
    (other.parent / "pyproject.toml").write_text("")
    for place in (folder, other):
        (place / "new_idea.py").write_text(GOOD)
    monkeypatch.setattr("lcl_composer.dropins._CHECKOUT", other.parent)
    assert DropIns("ideas", "callback").folders() == [folder, other]
    with pytest.raises(ConfigError, match="is in two files"):
        registry().get("new_idea")


@pytest.mark.parametrize("name", ["../ideas/new_idea", "a.b", "_new_idea", ""])
def test_only_plain_names_are_looked_up(folder: Path, name: str) -> None:
    (folder / "new_idea.py").write_text(GOOD)
    (folder / "_new_idea.py").write_text(GOOD)
    with pytest.raises(ConfigError, match="unknown callback"):
        registry().get(name)
