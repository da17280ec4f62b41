"""A run to come on small data, for the checks to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcl_composer.config import compose
from lcl_composer.preflight.plan import Plan
from lcl_composer.preflight.world import World
from tests import runs

DOCUMENTS = [runs.made_up(index) for index in range(34)]


def plan_of(
    folder: Path, /, *overrides: str, world: World | None = None, gpu: bool = False, **changes: Any
) -> Plan:
    """The plan of the tiny run on a folder's data; ``changes`` replace whole keys of its settings."""
    path = runs.write_yaml(Path.cwd(), runs.settings(folder, **changes))
    return Plan(compose(path, overrides), world or World(), gpu, "token")


def cached(data: Path, **settings: Any) -> dict[str, Any]:
    """Settings of ``data`` whose shards are cached from a remote."""
    train = {"local": "cache", "remote": str(data / "train"), "num_workers": 0, **settings}
    return {"image_size": 16, "max_tokens": 64, "train": train}
