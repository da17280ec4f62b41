"""The end every converter shares: which split a document goes to, and the folder it is written in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path

from lcl_composer.data.convert.report import ConversionReport
from lcl_composer.data.document import Document
from lcl_composer.data.folders import whole_folder
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import ConfigError, DataError

REPORT_FILE = "conversion.json"


def is_held_out(key: str, fraction: float) -> bool:
    """Say whether a key belongs to the held-out share: always the same for a key, on every machine."""
    number = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
    return number < fraction * 2**64


class ConversionOutput:
    """Writes documents to their split and counts them.

    Args:
        writers: A writer a split: ``all``, or ``train`` and ``held_out``.
        held_out: Share of the keys to hold out.
        report: Counts what is written.
    """

    def __init__(self, writers: dict[str, DocumentWriter], held_out: float, report: ConversionReport):
        self._writers = writers
        self._held_out = held_out
        self._report = report

    def write(self, document: Document, key: str) -> None:
        """Write a document; those of one ``key`` all go to the same split."""
        split = "all"
        if self._held_out > 0:
            split = "held_out" if is_held_out(key, self._held_out) else "train"
        self._writers[split].write(document)
        self._report.keep(document, split)


@contextmanager
def conversion_output(out: str, held_out: float, report: ConversionReport) -> Iterator[ConversionOutput]:
    """Open the output of a conversion: ``out``, or ``out/train`` and ``out/held_out`` with a held-out share.

    It appears as a whole when the block ends, with the report beside the shards.

    Raises:
        ConfigError: If ``held_out`` is not in [0, 1).
        DataError: If ``out`` is remote or holds something already, or a split would be empty.
    """
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out is {held_out}; use a share of the documents, 0 or more and below 1")
    if "://" in out:
        raise DataError(f"{out}: conversions write a local folder; name one and upload it afterwards")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{out}: exists already; remove it or name another folder")
    splits = {"train": "train", "held_out": "held_out"} if held_out > 0 else {"all": ""}
    with whole_folder(target) as partial:
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(DocumentWriter(str(partial / folder)))
                for split, folder in splits.items()
            }
            yield ConversionOutput(writers, held_out, report)
        for split in splits:
            if not report.kept[split]:
                raise DataError(_nothing_kept(split, report))
        report.finish()
        report.save(partial / REPORT_FILE)


def _nothing_kept(split: str, report: ConversionReport) -> str:
    if report.documents:
        return f"{report.source}: no document falls to {split}; use another held-out share"
    reasons = ", ".join(f"{reason} ({count})" for reason, count in report.dropped.most_common(3))
    return f"{report.source}: none of {report.read} documents kept: {reasons or 'found nothing to read'}"
