"""The kernels and losses run where there is only torch and triton."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import lcl_composer

PACKAGE = Path(lcl_composer.__file__).parent
FILES = sorted([*(PACKAGE / "kernels").glob("*.py"), *(PACKAGE / "losses").glob("*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_imports_torch_and_triton_only(file: Path):
    allowed = {"lcl_composer.kernels"} | ({"lcl_composer.losses"} if file.parent.name == "losses" else set())
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            root = name.split(".")[0]
            known = root in sys.stdlib_module_names or root in ("torch", "triton")
            assert known or ".".join(name.split(".")[:2]) in allowed, name
