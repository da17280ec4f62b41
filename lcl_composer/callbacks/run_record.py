"""Write down what a run is: its resolved config, versions, machine and source."""

from __future__ import annotations

import json
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.callbacks.launches import Tracker
from lcl_composer.config.core_schema import parse_yaml
from lcl_composer.report.environment import describe_environment
from lcl_composer.run_folder import next_free

_FILES = ("config.yaml", "environment.json", "code.patch")


class RunRecord(Callback):
    """Write ``config.yaml``, ``environment.json`` and, where the source is changed, ``code.patch``.

    Loggers that keep settings get them too.

    Rank 0 writes when training, or the making up of its end, starts: a launch that is refused, or finds the
    run finished, leaves the record as it was. A later launch into the same folder (a resume) moves the record
    it finds to ``launches/1``, ``launches/2``, ... so that the files at the top are those of the latest.

    Args:
        folder: The run folder, ``runs/NAME``; created if absent.
        config: The resolved config as YAML text.
    """

    def __init__(self, folder: Path, config: str):
        self.folder = Path(folder)
        self.config = config

    def fit_start(self, state: State, logger: Logger) -> None:
        """Write the record (rank 0)."""
        if dist.get_global_rank() != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._set_aside()
        facts, patch = describe_environment()
        facts["world_size"] = dist.get_world_size()
        (self.folder / "config.yaml").write_text(self.config)
        (self.folder / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")
        if patch:
            (self.folder / "code.patch").write_text(patch)
        for destination in logger.destinations:
            if isinstance(destination, Tracker):
                destination.log_settings(parse_yaml(self.config), self.config)

    def _set_aside(self) -> None:
        """Move an earlier launch's record out of the way."""
        found = [self.folder / name for name in _FILES if (self.folder / name).exists()]
        if not found:
            return
        place = next_free(self.folder / "launches" / "{}")
        place.mkdir(parents=True)
        for file in found:
            file.rename(place / file.name)


def folder_of(state: State) -> Path:
    """The folder of the run: that of its :class:`RunRecord`, else ``runs/<run name>``."""
    for callback in state.callbacks:
        if isinstance(callback, RunRecord):
            return callback.folder
    return Path("runs") / state.run_name
