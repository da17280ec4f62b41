"""Small images, and reading back what a converter wrote."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image
from streaming import StreamingDataset

from lcl_composer.data.document import Document


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
    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    documents = [Document.from_record(dataset[i]) for i in range(len(dataset))]
    return {document.id: document for document in documents}
