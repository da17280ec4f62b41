"""The page of error messages and the code say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
#: Where the messages of a run that breaks come from: all of them have to be on the page.
OF_FAULTS = [
    "callbacks/loss_guard.py",
    "callbacks/run_checkpoints.py",
    "checkpoint.py",
    "crash.py",
    "data/sources.py",
    "last_word.py",
    "launched.py",
    "remote_checkpoints.py",
    "run_folder.py",
]
#: What a run raises for a person to read.
_OURS = "LCLError|ConfigError|DataError|LostConnection|Stopped"
#: Places in messages that hold a value.
GAP = "…"


def text_of(node: ast.AST) -> str | None:
    """A string of the source with a gap for each value in it; None if the node is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else GAP for p in node.values)
    return None


def strings(path: Path) -> list[str]:
    found = (text_of(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [text for text in found if text]


def messages(path: Path) -> list[str]:
    """What a file raises, or returns as the line to end with."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raised = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    errors = [call for call in raised if re.fullmatch(_OURS, ast.unparse(call.func))]
    nodes: list[ast.AST] = [call.args[0] for call in errors if call.args]
    if path.name in ("crash.py", "last_word.py"):
        nodes += [n.value for n in ast.walk(tree) if isinstance(n, ast.Return) and n.value]
    texts = [text for node in nodes if (text := text_of(node))]
    return [text for text in texts if len(max(text.split(GAP), key=len)) >= 15]


def documented() -> list[str]:
    """The messages that the page explains: first cell of each row that begins with code."""
    return [found[1] for line in PAGE.splitlines() if (found := re.match(r"\| `([^`]+)` \|", line))]


CODE = [text for path in (ROOT / "lcl_composer").rglob("*.py") for text in strings(path)]


def is_in(message: str, text: str) -> bool:
    """Whether a message with gaps is part of another one."""
    at = 0
    for piece in message.split(GAP):
        at = text.find(piece, at)
        if at < 0:
            return False
    return True


@pytest.mark.parametrize("message", documented())
def test_what_is_documented_is_in_the_code(message: str) -> None:
    assert any(is_in(message, text) for text in CODE)


@pytest.mark.parametrize("file", OF_FAULTS)
def test_what_the_code_says_is_documented(file: str) -> None:
    missing = [
        text
        for text in messages(ROOT / "lcl_composer" / file)
        if not any(is_in(message, text) for message in documented())
    ]
    assert missing == []


def test_messages_are_found() -> None:
    assert len(documented()) > 25
    assert any(
        "is in use by another launch" in text for text in messages(ROOT / "lcl_composer/run_folder.py")
    )
    assert not is_in("a…b", "b a")
    assert is_in("a…b", "xa y bz")
