"""The one record type of every source: an ordered list of text and image segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: MDS columns of a Document. Safe encodings only: Streaming's ``pkl`` would run code on load.
MDS_COLUMNS = {"id": "str", "source": "str", "segments": "json", "images": "bytes"}


@dataclass(frozen=True, slots=True)
class Text:
    """A run of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image (JPEG, PNG, WebP ... bytes as they came).

    A *fixed* image stays in its place. A *floating* one belongs to the text segment that follows it in
    the list and goes before or after that text, drawn anew every epoch (MMC4, LAION pairs).
    """

    data: bytes
    floats: bool = False


Segment = Text | Image


@dataclass(frozen=True, slots=True)
class Document:
    """Text and images in reading order.

    Attributes:
        id: Unique within the data set; random draws of this document are keyed on it.
        source: Where it came from (a path or URL), named in error messages.
        segments: Text and images in reading order.
    """

    id: str
    source: str
    segments: tuple[Segment, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        """The document's images in reading order."""
        return tuple(s for s in self.segments if isinstance(s, Image))

    def to_record(self) -> dict[str, Any]:
        """Return the MDS row: image bytes in one blob, their lengths in the JSON of the segments."""
        segments = [
            {"text": s.text} if isinstance(s, Text) else {"image_bytes": len(s.data), "floats": s.floats}
            for s in self.segments
        ]
        blob = b"".join(image.data for image in self.images)
        return {"id": self.id, "source": self.source, "segments": segments, "images": blob}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Document:
        """Rebuild a Document from its MDS row.

        Raises:
            ValueError: If the image lengths do not add up to the blob, or a segment is of no known kind.
        """
        segments: list[Segment] = []
        blob, offset = record["images"], 0
        listed = isinstance(record["segments"], list)
        for entry in record["segments"] if listed else [None]:
            given = entry if isinstance(entry, dict) else {}
            text, size = given.get("text"), given.get("image_bytes")
            if isinstance(text, str):
                segments.append(Text(text))
            elif type(size) is int and size >= 0:
                segments.append(Image(blob[offset : offset + size], given.get("floats") is True))
                offset += size
            else:
                keys = f"with keys {sorted(given)}" if given else f"{str(entry)[:40]!r}"
                raise ValueError(f"document {record['id']!r}: segment {keys} is neither text nor image")
        if offset != len(blob):
            raise ValueError(
                f"document {record['id']!r}: {len(blob)} image bytes, its segments name {offset}"
            )
        return cls(record["id"], record["source"], tuple(segments))
