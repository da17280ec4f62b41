"""The files that a run reads, by what they hold: with others its numbers would not be what they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

#: Sections of the settings in which any parameter may name a file or folder to read; ``data`` names shards.
_SECTIONS = ("model", "tokenizer", "method", "evaluation", "load_path")

#: Parameters that name one however it is written. Another's value is one only if it is a path by its form:
#: ``names: imagenet`` is no folder ``imagenet`` that happens to lie there.
_PLACES = {"folder", "images", "load_path", "model", "path", "pretrained", "train", "val", "weights"}

#: Folders of images, which may be a million files: known by names and sizes. Of callbacks these alone are
#: read: what else they name may be a place that they write to.
_IMAGES = {"images", "train", "val"}

#: By these the folder of a model or a tokenizer is known, of which no subfolder is read.
_OF_A_MODEL = ("config.json", "open_clip_config.json", "tokenizer.json", "tokenizer_config.json")

_INDEX = "index.json"


def digests_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the file or folder that each setting names, by its dotted key, such as ``data.eval.local``.

    Of shards it is that of the index, which has their hashes; of image folders, of the names and sizes of all
    files; of other folders, of what is in them; of a model on the Hub, the revision in the local cache. What
    is not there, or cannot be read, is left out.

    Args:
        settings: Of a run, resolved, as JSON values.
    """
    found = {}
    for key, value in _values(settings):
        name = key.rpartition(".")[2]
        if digest := digest_of(name, value) or _cached_revision(name, value):
            found[key] = digest
    return found | dict(_shards(settings.get("data") or {}))


def digest_of(name: str, value: Any) -> str:
    """SHA-256 of the file or folder that a parameter's value names; "" where it names none."""
    if not isinstance(value, str) or not value or name == "name":
        return ""
    path = Path(value)
    if name not in _PLACES and not (os.sep in value or path.suffix):
        return ""
    try:
        return _digest(path, whole=name not in _IMAGES) if os.path.exists(value) else ""
    except (OSError, ValueError):
        return ""  # who reads it says so


def _values(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each value that may name something to read, with its dotted key; shards apart."""
    for section in _SECTIONS:
        yield from _leaves(section, settings.get(section))
    for key, value in _leaves("callbacks", settings.get("callbacks")):
        if key.rpartition(".")[2] in _IMAGES:
            yield key, value


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        below = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in below:
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _shards(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The indices of ``data.train`` and ``data.eval``, of each of their streams."""
    for part in ("train", "eval"):
        section = data.get(part) or {}
        streams = {f"data.{part}.streams.{name}": s for name, s in (section.get("streams") or {}).items()}
        for key, stream in (streams or {f"data.{part}": section}).items():
            index = Path(stream.get("local") or "", stream.get("split") or "", _INDEX)
            if stream.get("local") and (digest := digest_of("path", str(index))):
                yield f"{key}.local", digest


def _digest(path: Path, whole: bool) -> str:
    """Of a file or a folder; unless it is to be read ``whole``, an index is and other files' sizes are."""
    files = _files(path) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        about = file.stat()
        inside = file.relative_to(path).as_posix()
        content = str(about.st_size)
        if whole or file.name == _INDEX:
            content = _of_file(str(file), about.st_ino, about.st_size, about.st_mtime_ns)
        digest.update(f"{inside} {content}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Sequence[Path]:
    """What is read of a folder, in order: an index, a model's files, or all of an image folder."""
    if (folder / _INDEX).is_file():
        return [folder / _INDEX]
    if any((folder / name).is_file() for name in _OF_A_MODEL):
        found = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".md"]
    else:
        tree = os.walk(folder, followlinks=True)  # as an image folder is read
        found = [Path(here, name) for here, _, names in tree for name in names]
    return sorted(path for path in found if not path.name.startswith("."))


@cache
def _of_file(path: str, inode: int, size: int, changed: int) -> str:
    """SHA-256 of a file, read once as long as it is this one, of this size and time of its last change."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cached_revision(name: str, value: Any) -> str:
    """The revision of a model on the Hub that the local cache holds; "" where there is none."""
    if name != "pretrained" or not isinstance(value, str):
        return ""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(value, "config.json")
    except ValueError:  # it cannot be a repository's name
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""
