"""Conversions as one writes them in an afternoon: one process, no restart, no report."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from selectolax.lexbor import LexborHTMLParser, LexborNode
from streaming import MDSWriter

_COLUMNS = {"id": "str", "source": "str", "segments": "json", "images": "bytes"}


def pages(source: Path, out: Path, decode: bool) -> None:
    """Convert a folder of web pages."""
    with _writer(out) as writer:
        for path in sorted(source.glob("**/*.html")):
            body = LexborHTMLParser(path.read_text()).body
            assert body is not None
            for unwanted in body.css("nav, script, style, header, footer"):
                unwanted.decompose()
            writer.write(_record(str(path.relative_to(source)), _parts(body, path.parent), decode))


def _parts(body: LexborNode, folder: Path) -> Iterator[str | bytes]:
    for node in body.css("p, h1, h2, h3, h4, li, td, figcaption, img"):
        if node.tag != "img":
            yield node.text(strip=True)
        elif (path := folder / (node.attributes.get("src") or "none")).is_file():
            yield path.read_bytes()


def parquet(source: Path, out: Path, decode: bool) -> None:
    """Convert OBELICS with embedded images."""
    with _writer(out) as writer:
        for path in sorted(source.glob("*.parquet")):
            number = 0
            for batch in pq.ParquetFile(path).iter_batches(64, columns=["texts", "bytes"]):
                for row in batch.to_pylist():
                    parts = (
                        t if t is not None else b for t, b in zip(row["texts"], row["bytes"], strict=True)
                    )
                    writer.write(_record(f"{path.name}:{number}", parts, decode))
                    number += 1


def pairs(source: Path, out: Path, decode: bool) -> None:
    """Convert the tars of img2dataset."""
    import webdataset

    with _writer(out) as writer:
        tars = [str(path) for path in sorted(source.glob("*.tar"))]
        for sample in webdataset.WebDataset(tars, shardshuffle=False):  # type: ignore[attr-defined]
            writer.write(_record(sample["__key__"], [sample["jpg"], sample["txt"].decode()], decode))


def _writer(out: Path) -> MDSWriter:
    return MDSWriter(out=str(out), columns=_COLUMNS, compression="zstd", hashes=["xxh64"], size_limit=1 << 26)


def _record(name: str, parts: Any, decode: bool) -> dict[str, Any]:
    segments: list[dict[str, Any]] = []
    images: list[bytes] = []
    for part in parts:
        if isinstance(part, str):
            segments.append({"text": part})
            continue
        with Image.open(io.BytesIO(part)) as image:
            if min(image.size) < 64:
                continue
            if decode:
                image.convert("RGB")
        segments.append({"image_bytes": len(part), "floats": False})
        images.append(part)
    return {"id": name, "source": name, "segments": segments, "images": b"".join(images)}


#: By the name of our converter: ``script(source, out, decode)``.
SCRIPTS: dict[str, Callable[[Path, Path, bool], None]] = {
    "html": pages,
    "img2dataset": pairs,
    "obelics": parquet,
}
