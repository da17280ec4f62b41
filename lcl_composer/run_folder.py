"""The folder of a run: who owns it, which checkpoint it goes on from, and whether it is finished."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from lcl_composer.checkpoint import Begun, check_whole, read_begun
from lcl_composer.errors import DataError, LCLError
from lcl_composer.json_data import load_json, read_mapping
from lcl_composer.remote_checkpoints import RemoteCheckpoints

log = logging.getLogger(__name__)

#: Composer's names of checkpoints, and of the symlink to the newest.
CHECKPOINT_NAME, LATEST_NAME = "ep{epoch}-ba{batch}-rank{rank}.pt", "latest-rank{rank}.pt"

_FOUND = re.compile(r"ep(\d+)-ba(\d+)-rank0\.pt")
_NEWEST, _FINISHED, _METRICS = "newest_checkpoint.json", "finished.json", "metrics.jsonl"

#: What the end of a run leaves, and a finished run has.
_RESULTS = ("summary.json", "encoder/config.json", "encoder/model.safetensors", "plots/curves.png")


@dataclass(frozen=True)
class Found:
    """A checkpoint file, and the batch in its name; one in an object store is not there yet."""

    path: Path
    batch: int


@dataclass(frozen=True)
class Start:
    """Where a launch starts.

    Attributes:
        path: The run's own checkpoint that it goes on from; None: it begins.
        begun: What that checkpoint says.
        notes: What was passed over or put aside to get there, a sentence each.
    """

    path: str | None = None
    begun: Begun | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and that of its checkpoints.

    Attributes:
        name: The run's name.
        folder: ``runs/NAME``.
        checkpoints: ``save_folder``: a path, or a URI.
    """

    name: str
    folder: Path
    checkpoints: str

    @property
    def remote(self) -> bool:
        """Whether checkpoints go to an object store."""
        return "://" in self.checkpoints

    @cached_property
    def store(self) -> RemoteCheckpoints:
        """That store; what is fetched from it lies in the run folder, which all nodes share."""
        return RemoteCheckpoints(self.checkpoints, self.folder / "fetched")

    def found(self) -> list[Found]:
        """The checkpoints in ``save_folder``, the newest last.

        Raises:
            DataError: If an object store cannot be reached.
        """
        if self.remote:
            paths = [self.store.cache / name for name in self.store.names()]
        else:
            paths = list(Path(self.checkpoints).glob("ep*.pt"))
        files = [(path, _FOUND.fullmatch(path.name)) for path in paths]
        found = [(int(m[1]), Found(path, int(m[2]))) for path, m in files if m]
        return [item for _, item in sorted(found, key=lambda pair: (pair[1].batch, pair[0]))]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold both folders for this process; the system lets go of them when it dies.

        Raises:
            LCLError: If another launch holds one of them.
        """
        with ExitStack() as stack:
            places = [self.folder] if self.remote else [self.folder, Path(self.checkpoints)]
            for place in places:
                stack.enter_context(_held(place))
            yield

    def find_start(self, autoresume: bool, misfit: Callable[[Path], str] = lambda path: "") -> Start:
        """The newest checkpoint that can be loaded, or the beginning; what lies there is never overwritten.

        Args:
            autoresume: Whether the run may go on from a checkpoint.
            misfit: Says why a checkpoint cannot be loaded into the model; empty if it can. If that holds for
                all, the newest that can be read is given.

        Raises:
            LCLError: If the run would begin where checkpoints or metrics lie, or would take over the
                checkpoints of another run.
            DataError: If there are checkpoints and none of them can be read.
        """
        path, notes = self._newest_whole(misfit)
        if path is not None:
            begun = read_begun(path)
            if begun.run_name not in ("", self.name) and (self.remote or not self._inside(path)):
                raise LCLError(
                    f"save_folder {self.checkpoints}: holds the checkpoints of run {begun.run_name!r}; "
                    f"give {self.name!r} a folder of its own"
                )
            if not autoresume:
                raise LCLError(
                    f"autoresume is false, and {self._named(path)} lies there: the run would start at 0 and "
                    f"overwrite it; choose another run_name, or remove {self.folder}"
                )
            return Start(str(path), begun, notes)
        return Start(notes=[*notes, *self._put_metrics_aside(autoresume)])

    def _named(self, path: Path) -> str:
        """A checkpoint as it is called where it lies for good."""
        return f"{self.store.uri}/{path.name}" if self.remote else str(path)

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.folder.resolve())

    def _newest_whole(self, misfit: Callable[[Path], str]) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that can be loaded, and why those after it cannot."""
        problems: list[str] = []
        other: tuple[Path, list[str]] | None = None
        for item in reversed(self.found()):
            if self.remote:
                self.store.fetch(item.path.name)
            try:
                check_whole(item.path)
                if not (problem := misfit(item.path)):
                    return item.path, [f"{text}; passed over" for text in problems]
                other = other or (item.path, [*problems])
            except DataError as error:
                problem = str(error)
                if self.remote:
                    item.path.unlink(missing_ok=True)
            problems.append(problem.replace(str(item.path), self._named(item.path)))
        if other:
            return other
        if problems and (self.folder / _NEWEST).is_file():
            raise DataError(
                f"{problems[0]}; no other checkpoint of {self.name} can be read; choose another run_name or "
                f"save_folder, or remove {self.folder}"
            )
        return None, problems  # of a launch that was killed while it wrote its first

    def _put_metrics_aside(self, autoresume: bool) -> list[str]:
        """Keep the metrics of a launch that came to no checkpoint; refuse if one has been lost."""
        note = self.folder / _NEWEST
        if note.is_file():
            newest = read_mapping(note)
            raise LCLError(
                f"{self.folder} was trained to batch {newest.get('batch', '?')}, and its checkpoint "
                f"{newest.get('path', '(unknown)')} is not in save_folder {self.checkpoints}: set "
                "save_folder back or bring the checkpoint there; to begin anew choose another run_name, or "
                f"remove {self.folder}"
            )
        metrics = self.folder / _METRICS
        if not metrics.is_file() or not metrics.stat().st_size:
            return []
        if not autoresume:
            raise LCLError(
                f"autoresume is false, and {metrics} lies there: the run would start at 0 and overwrite it; "
                f"choose another run_name, or remove {self.folder}"
            )
        kept = metrics.rename(next_free(self.folder / "metrics.{}.jsonl"))
        return [
            f"{self.name} was stopped before its first checkpoint and begins again; {kept} has its metrics"
        ]

    def note_checkpoint(self, path: str, batch: int) -> None:
        """Write down where the newest checkpoint lies."""
        _write(self.folder / _NEWEST, {"path": path, "batch": batch})

    def note_end(self, batch: int, evaluation: dict[str, Any], inputs: dict[str, str]) -> None:
        """Mark the run as finished after ``batch`` batches, with what was measured and left.

        Args:
            batch: Where it stands.
            evaluation: What was measured.
            inputs: What it read, as :func:`lcl_composer.inputs.digests_of` says.
        """
        results = [name for name in _RESULTS if (self.folder / name).exists()]
        mark = {"batch": batch, "evaluation": evaluation, "inputs": inputs, "results": results}
        _write(self.folder / _FINISHED, mark)

    def finished(self, batch: int, evaluation: dict[str, Any]) -> bool:
        """Whether the run was finished after ``batch`` batches, measured so, and has its results yet."""
        try:
            mark = load_json((self.folder / _FINISHED).read_text())
            same = (mark["batch"], mark["evaluation"]) == (batch, evaluation)
            return same and all((self.folder / name).exists() for name in mark["results"])
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def check_inputs(self, evaluation: dict[str, Any], inputs: dict[str, str]) -> None:
        """Refuse files that are not those that a finished run read, where it noted them.

        Args:
            evaluation: What is to be measured; if it is something else, it may read other files.
            inputs: What lies there now, as :func:`lcl_composer.inputs.digests_of` says.

        Raises:
            DataError: Names, in a line, the settings whose files changed.
        """
        try:
            mark = load_json((self.folder / _FINISHED).read_text())
            before, same = dict(mark.get("inputs", {})), mark.get("evaluation") == evaluation
        except (OSError, ValueError, TypeError, AttributeError):
            return
        other = [key for key, digest in inputs.items() if before.get(key, digest) != digest]
        if other := [key for key in other if same or not key.startswith("evaluation.")]:
            raise DataError(
                f"{self.folder} is finished, and what {', '.join(other)} names has changed since: bring that "
                "back, or remove the folder to train anew"
            )


def next_free(path: Path) -> Path:
    """The first of ``path`` with 1, 2, ... in place of ``{}`` that is behind all that are there.

    Counting them would give the number of another where one in between was removed.
    """
    pattern = re.compile(re.escape(path.name).replace(r"\{\}", r"(\d+)"))
    found = [pattern.fullmatch(name) for name in os.listdir(path.parent)] if path.parent.is_dir() else []
    return path.with_name(path.name.format(1 + max((int(match[1]) for match in found if match), default=0)))


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old or the new content, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content) + "\n")
    os.replace(temporary, path)


def _lock_file(place: Path) -> IO[str]:
    try:
        place.mkdir(parents=True, exist_ok=True)
        return (place / ".lock").open("a+")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # is told with the room that there is
        raise LCLError(
            f"{place} cannot be written to ({error.strerror}: {error.filename}); mend its rights, or choose "
            "another folder or save_folder"
        ) from error


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """Lock ``place/.lock`` with a record lock, which forked loader workers do not inherit."""
    with _lock_file(place) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s: no lock to be had (%s); nothing else may train here", place, error.strerror)
                yield
                return
            file.seek(0)
            raise LCLError(
                f"{place} is in use by another launch ({file.read().strip() or 'unknown'}); wait for its "
                "end, end it, or choose another run_name"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
