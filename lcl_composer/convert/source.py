"""What a converter is: a source cut into parts, each a stream of records that become Documents."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from lcl_composer.convert.files import scan, suffix_of
from lcl_composer.convert.images import ImageRules, Rejected
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.text import display_name
from lcl_composer.data.document import Document
from lcl_composer.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a source that one worker converts at a time: some megabytes to a gigabyte.

    Attributes:
        name: What messages call it.
        files: Files below the source whose size and time tell whether it changed; one may be missing.
        items: What the source needs to read it, as JSON values.
        stamps: Size and time of each file when it was planned, None for one that was missing.
    """

    name: str
    files: tuple[str, ...]
    items: Any = None
    stamps: list[list[int] | None] | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """A Document and where it goes.

    Attributes:
        document: The document.
        key: Documents of one key are held out together.
        split: The split that the source itself puts it in, or None.
        headings: Paragraphs of its texts that are headings, in reading order, where the source tells them.
    """

    document: Document
    key: str
    split: str | None = None
    headings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source(ABC):
    """Where documents come from and which are kept.

    The fields are the options of ``lcl convert``. Nothing but they and the files may have a say in what
    comes out: the same part gives the same documents in every process.

    Args:
        source: What to convert.
        min_side: Images with a shorter side, in pixels, are left out.
        min_words: Documents with fewer words, as Unicode counts them, are dropped.
        resize: Longest side in pixels; larger images are scaled down and encoded anew, all others keep
            their bytes. None to keep all.
        verify: Decode every image to find broken ones now and not in training.
        links_into: Folder that links in the source may lead into. None: none may, but those of a snapshot in
            the Hugging Face cache lead into that.
    """

    source: Path
    _: KW_ONLY
    min_side: int = 1
    min_words: int = 1
    resize: int | None = None
    verify: bool = False
    links_into: Path | None = None

    kind: ClassVar[str]
    has_splits: ClassVar[bool] = False
    #: Its documents are one image and the name of its class.
    labelled: ClassVar[bool] = False
    #: Endings of the files that are read; the others are counted.
    reads: ClassVar[frozenset[str]]
    #: What helps where nothing was kept, for messages.
    hint: ClassVar[str] = ""

    @property
    def called(self) -> str:
        """The name of the source, also where it is given as ``.``."""
        return os.path.basename(os.path.abspath(self.source))

    @property
    def rules(self) -> ImageRules:
        """Which images are kept, and at what size."""
        return ImageRules(self.min_side, self.resize, self.verify, self.links_into)

    @property
    def looks_for(self) -> str:
        """The names of the files that are read, for messages."""
        return ", ".join(sorted(self.reads))

    def options(self) -> dict[str, Any]:
        """Return the options as JSON values, without the source."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def check(self) -> None:
        """Look at options and source before anything is written.

        Raises:
            ConfigError: If an option is out of range.
            DataError: If the source is not there.
        """
        if self.min_side < 1 or self.min_words < 0 or (self.resize is not None and self.resize < 1):
            raise ConfigError(
                f"min_side={self.min_side}, min_words={self.min_words}, resize={self.resize}; "
                "need min_side >= 1, min_words >= 0, resize >= 1"
            )
        if not self.source.is_dir():
            raise DataError(f"{self.source}: no such folder; name the folder that holds the {self.kind} data")

    def survey(self, report: ConversionReport) -> None:
        """Count what lies in the source and is of no kind that is read, by suffix or reason."""
        if not self.source.is_dir():
            return
        for name, problem in scan(self.source, self.links_into):
            suffix = suffix_of(name)
            if problem is not None or suffix not in self.reads:
                report.pass_over(problem or f"{suffix or 'no suffix'} files", display_name(name))

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """Yield the parts in a fixed order, one after the other, so that millions need no memory.

        Raises:
            DataError: If the source cannot be read as what it should be.
        """

    @abstractmethod
    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
        """Yield a part's records as they stand, each with its name; a :class:`Rejected` for a bad one.

        A file that breaks off is counted by ``report.break_file`` after the records before the break.
        """

    @abstractmethod
    def samples(self, name: str, record: Any, report: ConversionReport) -> Iterator[Converted]:
        """Yield what a record gives, most often one sample.

        Raises:
            Rejected: If the record is bad; the message is the reason it is counted under.
        """


__all__ = ["Converted", "Part", "Rejected", "Source"]
