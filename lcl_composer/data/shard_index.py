"""The index of a data set, which anyone may have written: judged before a file that it names is touched.

Streaming takes an index at its word: it reads, writes and deletes the files that it names, wherever they lie,
decodes every column, a pickle too, and makes arrays of as many samples as it claims.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaming.base.compression import get_compressions

from lcl_composer.data.document import MDS_COLUMNS
from lcl_composer.errors import DataError
from lcl_composer.json_data import load_json

#: Bytes of a shard before compression and after: its offsets are unsigned numbers of 32 bits.
MAX_SHARD = 1 << 32

#: Encodings of columns besides those of a Document that may be there. ``pkl`` runs code; those of images
#: hand bytes to any decoder that Pillow has, some of which run other programs.
_PLAIN = frozenset({"bytes", "int", "json", "str", "str_decimal", "str_float", "str_int"})
_PLAIN |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_PLAIN |= {f"float{bits}" for bits in (16, 32, 64)}


def read_index(path: Path) -> list[dict[str, Any]]:
    """Return the entries of an index of Documents, one a shard.

    Raises:
        DataError: If the index cannot be read, has other columns or some that are not safe to decode, names
            files outside its folder, or does not add up.
    """
    try:
        entries = load_json(path.read_text(encoding="utf-8"))["shards"]
        if not isinstance(entries, list):
            raise TypeError("shards is no list")
        for shard in entries:
            if (shard.get("format", "mds"), shard.get("version", 2)) != ("mds", 2):
                raise DataError(f"{path}: not an index of MDS, version 2; convert the data anew")
            _check_columns(path, list(zip(shard["column_names"], shard["column_encodings"], strict=True)))
        for number, shard in enumerate(entries):
            if problem := next(_problems(shard), None):
                raise DataError(f"{path}: shard {number}: {problem}; this is no index that lcl convert wrote")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not an MDS index ({type(error).__name__}: {error}); convert the data anew"
        ) from error
    _check_links(path, entries)
    return entries


def _check_columns(path: Path, columns: list[tuple[Any, Any]]) -> None:
    """Refuse columns that are not those of Documents, or that run code; a name may come once."""
    found = dict(columns)
    if unsafe := [name for name, encoding in columns if encoding == "pkl"]:
        raise DataError(
            f"{path}: column {unsafe[0]!r} is a pickle, which runs code when read; convert it anew"
        )
    if wrong := sorted(name for name, encoding in MDS_COLUMNS.items() if found.get(name) != encoding):
        raise DataError(
            f"{path}: column {wrong[0]!r} is {found.get(wrong[0], 'missing')}, not "
            f"{MDS_COLUMNS[wrong[0]]}; this is no data set of Documents, make one with 'lcl convert'"
        )
    odd = [name for name, encoding in columns if encoding not in _PLAIN] or [
        name for name in found if [n for n, _ in columns].count(name) > 1
    ]
    if odd:
        raise DataError(
            f"{path}: column {odd[0]!r} comes twice or is no plain value ({found[odd[0]]}); convert it anew"
        )


def _problems(shard: dict[str, Any]) -> Iterator[str]:
    """What is wrong with an entry whose columns are right."""
    raw, packed, family = shard["raw_data"], shard["zip_data"], shard["compression"]
    sizes, samples, _, _ = (shard[key] for key in ("column_sizes", "samples", "format", "version"))
    for name, info in (("raw_data", raw), ("zip_data", packed)):
        if info is None and name == "zip_data":
            continue
        if not isinstance(info, dict) or not {"basename", "bytes"} <= info.keys() <= _OF_FILE:
            yield f"{name} is not a file with basename, bytes and hashes"
            return
        if leads_out(info["basename"]):
            yield f"{name} names {info['basename']!r}, which does not lie in the folder of the index"
        if not _whole(info["bytes"]) or not info["bytes"] < MAX_SHARD:
            yield f"{name} says {info['bytes']!r} bytes"
        if not isinstance(info.get("hashes") or {}, dict):
            yield f"{name} has no hashes by name"
    if (packed is None) != (family is None) or not (family is None or family in get_compressions()):
        yield f"compression is {family!r}"
    if len(sizes) != len(shard["column_names"]) or not all(s is None or _whole(s) for s in sizes):
        yield f"column_sizes is {sizes!r}"
    if not _whole(samples) or 4 * samples > raw["bytes"]:  # a shard holds the offset of each of its samples
        yield f"{samples!r} samples in {raw['bytes']} bytes"


_OF_FILE = {"basename", "bytes", "hashes"}


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def leads_out(name: Any) -> bool:
    """Whether a file's name in an index is none, or leads out of the folder as it is written."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return True
    return os.path.isabs(name) or bool({"", ".", ".."} & set(name.split("/")))


def _check_links(path: Path, entries: list[dict[str, Any]]) -> None:
    """Refuse sub-folders that are links out of an index's folder: files are written and deleted there."""
    names = (info["basename"] for shard in entries for info in (shard["raw_data"], shard["zip_data"]) if info)
    root = os.path.realpath(path.parent)
    for folder in {os.path.dirname(name) for name in names} - {""}:
        real = os.path.realpath(path.parent / folder)
        if not real.startswith(root.rstrip("/") + "/"):
            raise DataError(f"{path}: its shards lie in {folder!r}, a link that leads out of {path.parent}")
