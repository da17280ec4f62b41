"""What the launches of one run share at an experiment tracker: its id there, and how far it was logged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lcl_composer.json_data import load_json


@runtime_checkable
class Tracker(Protocol):
    """A logger that keeps a run's settings beside its metrics."""

    def log_settings(self, settings: dict[str, Any], text: str) -> None:
        """Keep the resolved settings.

        Args:
            settings: As a mapping.
            text: The same as YAML, which composes to the same run.
        """
        ...


class Launches:
    """A note in the run's folder, so that a resumed run goes on as the same one, its steps never back.

    A resume trains the batches behind its checkpoint again, to the same values; what an earlier launch has
    logged of them stands, and is not logged twice.

    A folder that was copied, or renamed, to go on under another name is another run there: two would write
    into one.

    Args:
        path: The file; its folder is made when something is noted.
        run: The run's name.
    """

    def __init__(self, path: Path, run: str):
        self.path, self.run = path, run
        self.id: str | None = None
        self._noted = self._earlier = -1
        try:
            noted = load_json(path.read_text())
            if noted.get("run", run) != run:
                return
            self.id, self._noted = str(noted["id"]), int(noted["step"])
            self._earlier = self._noted
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass  # the first launch, or one that was killed before it wrote

    def begin(self, run: str) -> None:
        """Note the run's id at the tracker."""
        self.id = run
        self._write()

    def is_new(self, step: int) -> bool:
        """Whether a step is to be logged; the last of an earlier launch, which may be cut off, is too."""
        return step >= self._earlier

    def note(self, step: int) -> None:
        """Note that a step is logged, and so are those before it."""
        if step > self._noted:
            self._noted = step
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.tmp")
        partial.write_text(json.dumps({"id": self.id, "step": self._noted, "run": self.run}))
        os.replace(partial, self.path)


def pictures_of(images: Any) -> list[np.ndarray]:
    """What Composer hands to ``log_images`` as a list of uint8 [H, W, 3]."""
    found = images if isinstance(images, list | tuple) else [images]
    return [np.asarray(image) for image in found]
