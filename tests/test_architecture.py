"""The folders import one another in one direction, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lcl_composer"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports when it runs; not what is there for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return {name for name in names if name.split(".")[0] == "lcl_composer"}


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def module_of(name: str) -> str:
    """The module in which an imported name lies."""
    return name if name in FILES else name.rpartition(".")[0]


GRAPH = {name: {module_of(n) for n in imported(path)} - {name} for name, path in FILES.items()}


def place(module: str) -> str:
    """Where a module stands in the drawing: its folder (``data/``), or the file itself beside the folders."""
    parts = module.split(".")
    return f"{parts[1]}/" if len(parts) > 2 or (PACKAGE / parts[-1]).is_dir() else f"{parts[1]}.py"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for follower in sorted(graph.get(node, ())):
            if found := visit(follower, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_between_files() -> None:
    assert circle(GRAPH) == []


def drawn() -> dict[str, int]:
    """Each folder and file that the drawing shows, with its line."""
    drawing = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8").split("```")[1]
    names = [re.findall(r"(?<!\S)\w+(?:/|\.py)(?!\S)", line) for line in drawing.splitlines()]
    found = [(name, number) for number, line in enumerate(names) for name in line]
    assert len(found) == len(dict(found)), "something is drawn twice"
    return dict(found)


#: Who imports whom across places.
ACROSS = {
    (name, imported)
    for name, names in GRAPH.items()
    for imported in names
    if PACKAGE.name not in (name, imported) and place(name) != place(imported)
}


def test_all_is_drawn() -> None:
    assert drawn().keys() == {place(name) for name in GRAPH if name != PACKAGE.name}


def test_imports_go_down() -> None:
    lines = drawn()
    assert {(name, n) for name, n in ACROSS if lines[place(name)] >= lines[place(n)]} == set()


def test_losses_and_kernels_know_nothing_else_of_ours() -> None:
    found = {(place(name), place(n)) for name, n in ACROSS}
    assert {n for name, n in found if name in ("losses/", "kernels/")} <= {"kernels/"}
