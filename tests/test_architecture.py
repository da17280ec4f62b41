"""The folders import one another in one direction, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

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


def folder(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or ((PACKAGE / parts[-1]).is_dir() and len(parts) == 2) else "."


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


def test_no_circle_between_folders() -> None:
    folders: dict[str, set[str]] = {}
    for name, names in GRAPH.items():
        if folder(name) != ".":
            folders.setdefault(folder(name), set()).update(folder(n) for n in names)
    assert circle({name: names - {name, "."} for name, names in folders.items()}) == []


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("kernels", {"losses", "methods", "models", "data"}),
        ("losses", {"methods", "models", "data", "callbacks", "algorithms"}),
        ("models", {"methods", "algorithms", "callbacks", "evaluation", "report"}),
        ("data", {"convert", "synthetic", "methods", "models", "callbacks"}),
        ("methods", {"algorithms", "callbacks", "evaluation", "report"}),
        ("algorithms", {"callbacks", "report"}),
    ],
)
def test_nothing_imports_upwards(below: str, above: set[str]) -> None:
    found = {(name, n) for name, names in GRAPH.items() if folder(name) == below for n in names}
    assert {(name, n) for name, n in found if folder(n) in above} == set()
