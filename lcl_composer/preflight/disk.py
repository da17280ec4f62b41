"""Disk for the caches of shards and the checkpoints, and whether they can be written."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
from streaming.base.util import bytes_to_int

from lcl_composer.errors import one_line
from lcl_composer.preflight.finding import Finding, fail, ok, size, warn
from lcl_composer.run_folder import RunFolder

if TYPE_CHECKING:
    from lcl_composer.preflight.plan import Plan

#: Seconds that a file of rank 0 may take to be seen by the other nodes of a shared file system.
_SEEN_WITHIN = 10.0
#: Streaming refuses a cache of fewer of its largest shards (streaming/base/dataset.py).
_LEAST_SHARDS = 4
_PROBE = ".preflight-{token}-{node}"


class Need(NamedTuple):
    """Bytes that are yet to be written to a folder, and what for."""

    place: Path
    bytes: int
    what: str


def disk(plan: Plan) -> Finding:
    """Free space against caches and checkpoints, those of one file system together."""
    needs = [*caches(plan), *checkpoints(plan)]
    by_system: dict[int, list[Need]] = {}
    for need in needs:
        by_system.setdefault(os.stat(existing(need.place)).st_dev, []).append(need)
    said = []
    for some in by_system.values():
        total, free = sum(need.bytes for need in some), psutil.disk_usage(str(existing(some[0].place))).free
        named = "; ".join(f"{size(need.bytes)} for {need.what} in {need.place}" for need in some)
        if total > free:
            return fail(
                f"{size(free)} free, {size(total)} needed ({named}): make room, set "
                "data.train.cache_limit, or lower save_num_checkpoints_to_keep"
            )
        said.append(f"{size(free)} free, {size(total)} needed ({named})")
    return unbounded(plan) or ok("; ".join(said) or "nothing to be written on this node")


def unbounded(plan: Plan) -> Finding | None:
    """A warning if all checkpoints are kept and their number follows from nothing, else None."""
    if plan.world.node == 0 and plan.run.save_num_checkpoints_to_keep == -1 and _count(plan) is None:
        each = size(plan.sizes.checkpoint)
        return warn(
            f"all checkpoints are kept, {each} each every {plan.run.save_interval}: nobody knows how many; "
            "set save_num_checkpoints_to_keep"
        )
    return None


def caches(plan: Plan) -> Iterator[Need]:
    """What the caches of each stream will take beyond what lies in them."""
    for key, settings in plan.streams():
        fetched = [seen for seen in plan.looked[key] if seen.fetches]
        whole = sum(seen.bytes for seen in fetched)
        if not whole:
            continue
        limit = bytes_to_int(settings.cache_limit) if settings.cache_limit else None
        here = sum(_bytes_in(seen.folder) for seen in fetched)
        largest = max(seen.largest for seen in fetched)
        kept = whole if limit is None else min(whole, limit)
        yield Need(fetched[0].folder, max(kept + largest - here, 0), f"the cache of {key}")


def cache_limit(plan: Plan) -> Finding:
    """Whether ``cache_limit`` holds enough shards for a run to begin and not to fetch them over and over."""
    said = []
    for key, settings in plan.streams():
        fetched = [seen for seen in plan.looked[key] if seen.fetches and seen.shards]
        if not settings.cache_limit or not fetched:
            continue
        limit, largest = bytes_to_int(settings.cache_limit), max(seen.largest for seen in fetched)
        whole = sum(seen.bytes for seen in fetched)
        if limit < _LEAST_SHARDS * largest:
            return fail(
                f"{key}.cache_limit is {size(limit)}, less than {_LEAST_SHARDS} of the largest shard "
                f"({size(largest)}), which Streaming refuses; raise it"
            )
        if limit < whole:
            said.append(f"{key}: {size(limit)} of {size(whole)}; shards are fetched again every epoch")
    return ok("; ".join(said) or "not reached")


def checkpoints(plan: Plan) -> Iterator[Need]:
    """What checkpoints will take; rank 0's node writes them."""
    if plan.world.node:
        return
    run, each = plan.run, plan.sizes.checkpoint
    if "://" in run.save_folder:
        yield Need(Path(tempfile.gettempdir()), 2 * each, "a checkpoint on its way to the remote")
        return
    there = RunFolder(run.run_name, plan.folder, run.save_folder).found()
    held = sum(item.path.stat().st_size for item in there if item.path.is_file())
    kept = run.save_num_checkpoints_to_keep
    count = (_count(plan) or 1) if kept == -1 else kept + 1  # the oldest goes after the newest is written
    what = f"{count} checkpoint{'s'[: count > 1]} of {size(each)}"
    yield Need(Path(run.save_folder), max(count * each - held, 0), what)


def _count(plan: Plan) -> int | None:
    """Checkpoints of the whole run, where interval and duration have one unit or one is a share."""
    pattern = re.compile(r"([\d.]+)(\w+)")
    every, whole = (pattern.fullmatch(t) for t in (plan.run.save_interval, plan.run.max_duration))
    assert every, "the schema checks it"
    assert whole, "the schema checks it"
    if every[2] == "dur":
        return int(1 / float(every[1])) + 1
    return int(float(whole[1]) / float(every[1])) + 1 if every[2] == whole[2] else None


def write_access(plan: Plan) -> Finding:
    """Whether run folder and save folder can be written, and are the same folders on all nodes."""
    remote = "://" in plan.run.save_folder
    for place in [plan.folder] if remote else [plan.folder, Path(plan.run.save_folder)]:
        try:
            _write(place, plan)
        except OSError as error:
            return fail(f"{place} cannot be written ({error.strerror}): mend its rights, or choose another")
        if plan.world.node and not remote and not _seen(place / _PROBE.format(token=plan.token, node=0)):
            return fail(
                f"{place.resolve()} is not the folder that node 0 sees: nodes resume from one another's "
                "checkpoints; put it on a file system that all share"
            )
    if remote:
        return _remote(plan)
    return ok(f"{plan.folder} and {plan.run.save_folder}")


def begin_probes(plan: Plan) -> list[Path]:
    """Make rank 0's probe files, for the other nodes to see; returns the folders that were made for them."""
    places = [plan.folder] if "://" in plan.run.save_folder else [plan.folder, Path(plan.run.save_folder)]
    made = []
    for place in places:
        made += [folder for folder in (place, *place.parents) if not folder.exists()]
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / _PROBE.format(token=plan.token, node=0)).touch()
        except OSError:  # the check itself will say so
            continue
    return made


def end_probes(plan: Plan, made: list[Path]) -> None:
    """Remove the probe files, and the folders that were made for them where nothing else lies in them."""
    for place in (plan.folder, Path(plan.run.save_folder)):
        with suppress(OSError):  # it could not be written either
            (place / _PROBE.format(token=plan.token, node=0)).unlink()
    for folder in sorted(set(made), key=lambda folder: -len(folder.parts)):
        with suppress(OSError):  # something has come into it
            folder.rmdir()


def existing(place: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = place.absolute()
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _write(place: Path, plan: Plan) -> None:
    """Write and read back a file of 1 MiB; raises OSError."""
    place.mkdir(parents=True, exist_ok=True)
    probe, content = place / _PROBE.format(token=plan.token, node=f"{plan.world.node}w"), os.urandom(1 << 20)
    try:
        with probe.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if probe.read_bytes() != content:
            raise OSError(0, "what is read is not what was written")
    finally:
        with suppress(OSError):
            probe.unlink()


def _seen(path: Path) -> bool:
    deadline = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _remote(plan: Plan) -> Finding:
    """Write a small object to the remote of the checkpoints and read it back."""
    from composer.utils import maybe_create_object_store_from_uri, parse_uri

    uri = plan.run.save_folder
    _, _, prefix = parse_uri(uri)
    name = f"{prefix.rstrip('/')}/.preflight-node{plan.world.node}"
    try:
        store = maybe_create_object_store_from_uri(uri)
        assert store is not None, "parse_uri found a backend"
        with tempfile.TemporaryDirectory() as folder:
            written, read = Path(folder, "written"), Path(folder, "read")
            written.write_text(plan.token)
            store.upload_object(name, written)
            store.download_object(name, read)
            if read.read_text() != plan.token:
                return fail(f"{uri}: what is read is not what was written; is something caching it?")
    except Exception as error:  # each kind of remote raises its own
        return fail(
            f"{uri} cannot be written and read ({type(error).__name__}: {one_line(error, 160)}): check its "
            "name and the credentials in the environment of every node"
        )
    return ok(f"{plan.folder} and {uri}")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.mds*")) if folder.is_dir() else 0
