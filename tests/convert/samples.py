"""Small images, and reading back what a converter wrote."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from streaming import StreamingDataset

from lcl_composer.convert.engine import convert
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Source
from lcl_composer.data.document import Document, Text
from lcl_composer.data.shared_memory import mend_numbers

#: Made-up records in the published layouts, beside a developer's checkout only.
FORMATS = Path(__file__).resolve().parents[3] / "shared" / "formats"
needs_formats = pytest.mark.skipif(not FORMATS.is_dir(), reason="no published formats beside the repository")


def picture(side: int = 80, colour: str = "red", kind: str = "PNG", height: int | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, height or side), colour).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG whose header asks for more memory than the file could ever fill."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 99)),
    )
    sealed = [
        struct.pack(">I", len(data)) + k + data + struct.pack(">I", zlib.crc32(k + data))
        for k, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def read_all(folder: Path) -> dict[str, Document]:
    mend_numbers()
    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    documents = [Document.from_record(dataset[i]) for i in range(len(dataset))]
    return {document.id: document for document in documents}


def run(source: Source, tmp_path: Path, **options) -> tuple[ConversionReport, dict[str, Document]]:
    """Convert to ``<tmp>/out`` in this process; return the report and all splits' documents."""
    out = tmp_path / "out"
    report = convert(source, str(out), progress=False, workers=1, **options)
    documents: dict[str, Document] = {}
    for index in sorted(out.rglob("index.json")):
        documents |= read_all(index.parent)
    assert len(documents) == report.documents
    return report, documents


def shown(document: Document) -> list[str | bytes]:
    return [s.text if isinstance(s, Text) else s.data for s in document.segments]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
