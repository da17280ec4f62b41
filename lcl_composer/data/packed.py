"""Compressed shards, unpacked into as many bytes as the index says and no more.

A few kilobytes of zstd may stand for gigabytes, which Streaming's ``decompress`` takes at one go.
"""

from __future__ import annotations

import os
from typing import Any

import cramjam

from lcl_composer.errors import DataError, one_line

_INTO: dict[str, Any] = {
    "br": cramjam.brotli.decompress_into,
    "bz2": cramjam.bzip2.decompress_into,
    "gz": cramjam.gzip.decompress_into,
    "snappy": cramjam.snappy.decompress_raw_into,
    "zstd": cramjam.zstd.decompress_into,
}


def unpack(where: object, compression: str, data: bytes, size: int) -> bytearray:
    """Return the content of a compressed shard.

    Args:
        where: The file, for messages.
        compression: Streaming's name, with a level or without: ``zstd:7``.
        data: The file's content.
        size: Bytes that the index says come out.

    Raises:
        DataError: If it is damaged, or holds more or less than ``size`` bytes.
    """
    content = bytearray(size)
    try:
        found = _INTO[compression.partition(":")[0]](data, content)
    except Exception as error:  # cramjam's own, which says as much of a bomb as of damage
        raise DataError(
            f"{where}: damaged, or it holds more than the {size} bytes that its index says "
            f"({one_line(error)}); copy or convert it anew"
        ) from error
    if found != size:
        raise DataError(f"{where}: holds {found} bytes, its index says {size}; copy or convert it anew")
    return content


def write_new(path: str, content: bytes | bytearray) -> None:
    """Write a file that takes its name once it is whole; nothing is written through a link.

    Raises:
        DataError: If a link lies where the half-written file goes.
    """
    partial = f"{path}.tmp"
    refuse_link(partial)
    with open(partial, "wb") as file:
        file.write(content)
    os.rename(partial, path)


def refuse_link(path: str) -> None:
    """Raise DataError if a path that is about to be written is a link: it may lead out of the data set."""
    if os.path.islink(path):
        raise DataError(f"{path}: is a link, and would be written through; remove it")
