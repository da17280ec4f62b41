"""Tables of images and captions -> Documents."""

from __future__ import annotations

import json
import os
from ast import literal_eval
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from io import StringIO
from pathlib import Path
from token import STRING
from tokenize import TokenError, generate_tokens
from typing import Any, ClassVar

from lcl_composer.convert.encoding import text_value
from lcl_composer.convert.files import suffix_of, walk
from lcl_composer.convert.images import SUFFIXES as IMAGE_SUFFIXES
from lcl_composer.convert.pairs import PairSource, check_facts
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected
from lcl_composer.convert.tables import SUFFIXES, check_columns, table_parts, table_rows
from lcl_composer.convert.text import caption_text, display_name, one_line
from lcl_composer.convert.urls import image_of
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Table(PairSource):
    """A table with an image and a caption column: CSV, JSONL, Parquet, Arrow; one file or a folder of them.

    One document a row, or one for each of several images or captions that it lists; the image floats, so
    it is drawn before or after its caption anew every epoch. An image is a path, the bytes themselves, or
    a URL whose download lies in the image folder under the SHA-256 of the URL. Rows of one caption are
    held out together, whatever its letters' case.

    With a question column a row is one document: the fixed image, the question, and each of the answers in
    the caption column, as texts or as the objects with ``answer`` that VQA's files have. Questions about one
    image are held out together.

    Args:
        source: A ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet`` or ``.arrow`` file, or a folder that is
            searched for them.
        images: Folder that paths of images start from, and that none may leave; None: the folder of the
            table, else the source.
        image_column: Column of paths, URLs or bytes.
        caption_column: Column of captions, or of answers.
        question_column: Column of questions; None: the table has captions.
        similarity_column: Column of the similarity of image and caption.
        language_column: Column of the caption's language.
        min_similarity: Rows of a lower similarity, or of none, are dropped; None to keep all.
        language: Languages to keep (``en``); may be given several times. A row that names none is kept.
    """

    images: Path | None = None
    image_column: str = "image"
    caption_column: str = "caption"
    question_column: str | None = None
    similarity_column: str = "similarity"
    language_column: str = "language"

    kind: ClassVar[str] = "table"
    reads: ClassVar[frozenset[str]] = SUFFIXES | IMAGE_SUFFIXES
    hint: ClassVar[str] = "name the columns with --image-column and --caption-column"

    @property
    def _columns(self) -> list[str]:
        """Those that a table must have."""
        asked = [] if self.question_column is None else [self.question_column]
        return [self.image_column, self.caption_column, *asked]

    @property
    def _root(self) -> Path:
        return self.source if self.source.is_dir() else self.source.parent

    def check(self) -> None:
        """Look for the source, which may be a file, and the image folder."""
        if self.source.is_file():
            if suffix_of(self.source.name) not in SUFFIXES:
                raise DataError(f"{self.source}: no table; name a file of {', '.join(sorted(SUFFIXES))}")
        else:
            super().check()
        if self.images is not None and not self.images.is_dir():
            raise DataError(f"{self.images}: no such folder; set images to where the image files are")

    def parts(self) -> Iterator[Part]:
        """Yield stretches of the tables, having looked for the two columns in each."""
        names = [self.source.name] if self.source.is_file() else walk(self.source, SUFFIXES, self.links_into)
        for name in names:
            check_columns(self._root / name, self._columns, self.hint)
            yield from table_parts(self._root, name)

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
        """Yield the rows."""
        columns = [*self._columns, self.similarity_column, self.language_column]
        folder = os.path.dirname(part.files[0])
        for name, row in table_rows(self._root, part, columns, report):
            yield display_name(name), row if isinstance(row, Rejected) else Row(folder, row)

    def samples(self, name: str, record: Row, report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a row, or one for each of the images or captions that it lists."""
        cells = record.cells
        facts = cells.get(self.similarity_column), cells.get(self.language_column)
        if self.question_column is not None:
            check_facts(self, *facts, report)
            yield self._asked(name, cells.get(self.question_column), record)
            return
        images, captions = _list(cells.get(self.image_column)), _list(cells.get(self.caption_column))
        count = max(len(images), len(captions))
        if {len(images), len(captions)} - {1, count}:
            raise Rejected("lists of images and captions of unequal length")
        check_facts(self, *facts, report)
        key = None
        for number in range(count):
            each = name if count == 1 else f"{name}/{number}"
            try:
                value = text_value(captions[number if len(captions) > 1 else 0], each, report)
                caption = caption_text(value)
                image = self._image(images[number if len(images) > 1 else 0], record)
            except Rejected as reason:
                report.drop(str(reason), each)
                continue
            pair = self.pair(each, image, caption)
            key = key or pair.key
            yield replace(pair, key=key)

    def _image(self, value: Any, record: Row) -> bytes:
        folders = ("",) if self.images is not None else dict.fromkeys((record.folder, ""))
        return image_of(value, self.images or self._root, self.rules, tuple(folders))

    def _asked(self, name: str, question: Any, record: Row) -> Converted:
        """The document of a row with a question."""
        if not isinstance(question, str) or not question.strip():
            raise Rejected("question missing")
        given = _list(record.cells.get(self.caption_column))
        answers = [answer.get("answer") if isinstance(answer, dict) else answer for answer in given]
        texts = [one_line(str(answer)) for answer in answers if answer is not None]
        if not any(texts):
            raise Rejected("answer missing")
        image = self._image(record.cells.get(self.image_column), record)
        segments = (Image(image), Text(one_line(question)), *(Text(text) for text in texts if text))
        return Converted(Document(name, f"{self.called}/{name}", segments), sha256(image).hexdigest())


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and the folder of its table below the root."""

    folder: str
    cells: dict[str, Any]


def _list(value: Any) -> list[Any]:
    """Return a cell as a list, which CSV may hold as JSON, Python or NumPy write it; none is empty."""
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]":
        for read in (json.loads, _written_texts):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TokenError):
                written = read(value)
                if isinstance(written, list) and all(isinstance(item, str | None) for item in written):
                    return written or [None]
    if isinstance(value, list) and not (value and isinstance(value[0], int)):  # numbers are a picture's bytes
        return value or [None]
    return [value]


def _written_texts(cell: str) -> list[Any]:
    """Return the texts of a list as Python writes it, or NumPy: without commas, where Python joins them.

    Raises:
        ValueError, SyntaxError, TokenError: If it is none.
    """
    tokens = [token for token in generate_tokens(StringIO(cell.strip()).readline) if token.string.strip()]
    texts = [token for token in tokens[1:-1] if token.string != ","]  # without the brackets
    if any(token.type != STRING and token.string != "None" for token in texts):
        raise ValueError("no list of texts")
    return [literal_eval(token.string) for token in texts]
