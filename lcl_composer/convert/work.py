"""The folder a conversion works in: what is finished stays finished when the process is killed.

    OUT.partial/                     OUT's place until all is there
      [<split>/]<part>/shard...      finished parts (not with a remote OUT: they are uploaded)
      .convert/manifest.json         source, options, versions
      .convert/plan.jsonl            the parts, a line each, with size and time of their files
      .convert/parts/<part>.json     written last of a part: its counts and shards
      .convert/tmp/                  parts in the making

Everything in it is written elsewhere and renamed, so that a name stands for the whole content.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any
from uuid import uuid4

from lcl_composer.convert.source import Part, Source
from lcl_composer.errors import DataError

STATE = ".convert"


class WorkFolder:
    """The folder of one conversion, made or taken up again.

    Args:
        root: ``OUT.partial``, or the folder named for the work of a remote ``OUT``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / STATE
        self._plan = self.state / "plan.jsonl"
        self._manifest = self.state / "manifest.json"
        self._done = root / f"{STATE}.done"

    @property
    def started(self) -> bool:
        """Whether a conversion began here and was not finished."""
        return self._manifest.is_file()

    def forget(self) -> None:
        """Remove the records of the work, and the folder if nothing else is in it."""
        os.rename(self.state, self._done)  # a half-deleted record must never be taken up again
        shutil.rmtree(self._done)
        with suppress(OSError):  # the folder may be a mount
            self.root.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out for the block.

        Raises:
            DataError: If one is at work here, or the folder holds what no conversion wrote.
        """
        shutil.rmtree(self._done, ignore_errors=True)
        if self.root.exists() and not self.state.is_dir() and any(self.root.iterdir()):
            raise DataError(f"{self.root}: holds files that no conversion wrote; move them away")
        self.state.mkdir(parents=True, exist_ok=True)
        with open(self.state / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(f"{self.root}: another conversion is at work here; wait for it") from error
            self._clear_scratch()
            (self.state / "parts").mkdir(exist_ok=True)
            try:
                yield
            except BaseException:
                if not self.started:  # refused before anything was converted
                    shutil.rmtree(self.root, ignore_errors=True)
                raise

    def _clear_scratch(self) -> None:
        """Take away what processes left; one on another machine may be at work in it until it looks."""
        old = self.state / f"old-{uuid4().hex}"
        with suppress(FileNotFoundError):
            os.rename(self.state / "tmp", old)
        shutil.rmtree(old, ignore_errors=True)
        (self.state / "tmp").mkdir(exist_ok=True)

    def begin(self, manifest: dict[str, Any], source: Source) -> int:
        """Write down what is converted and how, or check that it is what was begun here.

        Args:
            manifest: The settings that decide the output.
            source: The source, which is cut into parts.

        Returns:
            The number of parts.

        Raises:
            DataError: If the settings are others, or the source has changed.
        """
        manifest = json.loads(json.dumps(manifest))  # tuples as lists, as they come back
        if not self.started:
            count = self._write_plan(source)
            self.write_text(self._manifest, json.dumps(manifest, indent=2))
            return count
        begun = json.loads(self._manifest.read_text())
        if begun != manifest:
            changes = _differences(begun, manifest)
            raise DataError(
                f"{self.root}: begun with other settings ({changes}); go back to them, or delete the folder "
                "to start anew"
            )
        return self._check_plan(source)

    def _write_plan(self, source: Source) -> int:
        count = 0
        with self.scratch("plan") as folder:
            with open(folder / "plan", "w") as file:
                for line in _plan_lines(source):
                    file.write(line + "\n")
                    count += 1
            os.replace(folder / "plan", self._plan)
        return count

    def _check_plan(self, source: Source) -> int:
        count = 0
        with open(self._plan) as file:
            old = (line.rstrip("\n") for line in file)
            for before, now in zip_longest(old, _plan_lines(source)):
                if before != now:
                    name = json.loads(before or now or "")["name"]
                    raise DataError(
                        f"{source.source}: has changed since {self.root} was begun (at {name!r}); delete "
                        "that folder to start anew"
                    )
                count += 1
        return count

    def finished(self, count: int) -> bytearray:
        """Return a 1 for each part that is finished, of ``count``.

        They are found by one look at the folder: hundreds of thousands on a network would take minutes.
        """
        found = bytearray(count)
        with os.scandir(self.state / "parts") as entries:
            for entry in entries:
                number, _, suffix = entry.name.partition(".")
                if suffix == "json":
                    found[int(number)] = 1
        return found

    def parts(self, finished: bytearray) -> Iterator[tuple[int, Part]]:
        """Yield the parts that are not finished, with their numbers."""
        with open(self._plan) as file:
            for index, line in enumerate(file):
                if not finished[index]:
                    facts = json.loads(line)
                    yield index, Part(facts["name"], tuple(facts["files"]), facts["items"], facts["stamps"])

    def record(self, index: int) -> Path:
        """Return the file that says that a part is finished."""
        return self.state / "parts" / f"{index:05d}.json"

    def failures(self, index: int) -> Path:
        """Return the file that names what a part left out, a JSON line each."""
        return self.state / "parts" / f"{index:05d}.failures.jsonl"

    def sizes(self, index: int, split: str) -> Path:
        """Return the file with the sizes of a part's documents in a split."""
        return self.state / "parts" / f"{index:05d}.{split}.sizes.npy"

    def referred(self, index: int) -> Path:
        """Return the file with the digests of what a part's documents refer to; most parts have none."""
        return self.state / "parts" / f"{index:05d}.referred"

    def all_referred(self) -> list[Path]:
        """Return the files of :meth:`referred` that there are."""
        return sorted((self.state / "parts").glob("*.referred"))

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a folder for the block, on the same file system, that no other process has."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.state / "tmp"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write_text(self, path: Path, text: str) -> None:
        """Write a file that is there whole or not at all."""
        with self.scratch("text") as folder:
            (folder / "text").write_text(text, encoding="utf-8")
            os.replace(folder / "text", path)


def check_stamps(source: Source, part: Part) -> None:
    """Refuse a part whose files are no longer those that were planned, or other ones on this machine.

    Raises:
        DataError: If one differs in size or time, or whether it is there.
    """
    if part.stamps is None:
        return
    root = _root(source)
    for name, planned in zip(part.files, part.stamps, strict=True):
        if planned != (found := stamp(root + name)):
            raise DataError(
                f"{source.source}: {name!r} on {socket.gethostname()} is not the file that was planned "
                f"({_shown(planned)}, now {_shown(found)}); the source must stay as it is, and be the same "
                "on every machine"
            )


def _shown(stamp: list[int] | None) -> str:
    if stamp is None:
        return "missing"
    return f"{stamp[0]:,} bytes of {datetime.fromtimestamp(stamp[1] / 1e9):%Y-%m-%d %H:%M:%S.%f}"


def _plan_lines(source: Source) -> Iterator[str]:
    root = _root(source)
    for part in source.parts():
        stamps = [stamp(root + name) for name in part.files]
        yield json.dumps({"name": part.name, "files": part.files, "items": part.items, "stamps": stamps})


def _root(source: Source) -> str:
    """Return where the files of parts lie, with a slash: to join 300,000 paths takes long."""
    return f"{source.source if source.source.is_dir() else source.source.parent}/"


def stamp(path: str | Path) -> list[int] | None:
    """Return size in bytes and time in nanoseconds of a file, None if it is not there."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return [facts.st_size, facts.st_mtime_ns]


def _differences(begun: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the settings that differ: ``min_side 16 -> 32``."""
    found = []
    for key in sorted({*begun, *now}):
        before, after = begun.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if before != after:
                found.append(_differences(before, after))
        elif before != after:
            found.append(f"{key} {before} -> {after}")
    return ", ".join(found)
