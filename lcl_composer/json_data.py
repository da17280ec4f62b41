"""JSON that anyone may have written: what cannot be read is a ValueError, however it is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Python itself raises RecursionError at a text that is nested a few thousand deep.

    Raises:
        ValueError: If it is no JSON, is nested too deep, or has a whole number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the JSON mapping in a file of notes that one can do without; empty where it cannot be had."""
    try:
        found = load_json(path.read_text())
    except (OSError, ValueError):  # gone, or half-written
        return {}
    return found if isinstance(found, dict) else {}
