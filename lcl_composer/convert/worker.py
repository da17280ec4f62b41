"""One part of a source -> its shards, its counts, and the record that it is finished."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lcl_composer.convert.files import forget_folders
from lcl_composer.convert.long_documents import Splitter
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected, Source
from lcl_composer.convert.text import valid_text
from lcl_composer.convert.upload import upload
from lcl_composer.convert.work import WorkFolder, check_stamps
from lcl_composer.data.document import Document, Text
from lcl_composer.data.labelled import class_name
from lcl_composer.data.sizes import SIZES_FILE
from lcl_composer.data.words import has_words
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import LCLError, one_line

#: A shard's offsets have 32 bits, and a sample must fit.
_MAX_IMAGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Job:
    """What all parts of a conversion have in common.

    Attributes:
        source: What is converted.
        root: The work folder.
        remote: Where finished shards are uploaded, or None to leave them in the work folder.
        held_out: Share of the keys to hold out.
        shard_size: Bytes a shard before compression.
    """

    source: Source
    root: Path
    remote: str | None
    held_out: float
    shard_size: int


def is_held_out(key: str, fraction: float) -> bool:
    """Say whether a key belongs to the held-out share: always the same for a key, on every machine."""
    number = int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big")
    return number < fraction * 2**64


def split_folder(split: str) -> str:
    """Return the sub-folder of a split; the only one has none."""
    return "" if split == "all" else split


def convert_part(job: Job, index: int, part: Part, tick: Callable[[], None]) -> None:
    """Convert a part and record it as finished. ``tick`` is called for every record.

    Doing it again gives the same bytes, and does no harm while another process does it, or has done it.

    Raises:
        DataError: If its files are not those that were planned.
    """
    forget_folders()
    work = WorkFolder(job.root)
    check_stamps(job.source, part)
    report = ConversionReport(job.source.kind, str(job.source.source), {})
    splitter = Splitter(job.source)
    with work.scratch(f"{index:05d}") as scratch:
        with ExitStack() as stack:
            failures = stack.enter_context(open(scratch / "failures.jsonl", "w"))
            report.on_failure = lambda reason, name: _write_failure(failures, reason, name)
            writers: dict[str, DocumentWriter] = {}
            classes: dict[str, Counter[str]] = {}
            for sample in _accepted(job.source, part, report, tick):
                split = sample.split or _drawn_split(sample.key, job.held_out)
                if split not in writers:
                    out = scratch / split
                    out.mkdir()  # the writer would make its parents too, which a restart may have taken away
                    writers[split] = stack.enter_context(DocumentWriter(out, size_limit=job.shard_size))
                for document, tokens in splitter.split(sample, report):
                    writers[split].write(document)
                    report.keep(document, split, tokens)
                    if job.source.labelled:
                        classes.setdefault(split, Counter())[class_name(document)] += 1
        # First, as it fails if a restart has taken the scratch folder away: its conversion may be another.
        os.replace(scratch / "failures.jsonl", work.failures(index))
        if report.referred.names:
            report.referred.save(scratch / "referred.bin")
            os.replace(scratch / "referred.bin", work.referred(index))
        shards = {split: _store(job, work, scratch, split, index) for split in sorted(writers)}
        report.shard_bytes = sum(_stored_bytes(shard) for group in shards.values() for shard in group)
    facts = {"report": report.to_json(), "shards": shards, "classes": classes}
    work.write_text(work.record(index), json.dumps(facts))


def _accepted(
    source: Source, part: Part, report: ConversionReport, tick: Callable[[], None]
) -> Iterator[Converted]:
    """Yield a part's good samples; the others are counted and named."""
    for name, record in _records(source, part, report):
        tick()
        try:
            if isinstance(record, Rejected):
                raise record
            for sample in source.samples(name, record, report):
                if problem := _problem(sample.document, source.min_words):
                    report.drop(problem, sample.document.id)
                else:
                    document = valid_document(sample.document)
                    if document != sample.document:
                        report.mend("halves of characters became ?", document.id)
                    yield replace(sample, document=document)
        except Rejected as reason:
            report.drop(str(reason), name)
        except (LCLError, OSError, MemoryError):
            raise
        except Exception as error:  # what no one thought of costs its record, not the conversion
            report.drop(f"cannot be converted ({type(error).__name__}: {one_line(error, 100)})", name)


def _records(source: Source, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
    """Yield a part's records; where reading them fails, the part ends and the report says after which."""
    last = part.name
    try:
        for name, record in source.records(part, report):
            last = name
            yield name, record
    except (LCLError, OSError, MemoryError):
        raise
    except Exception as error:
        report.break_file(f"cannot be read on ({type(error).__name__}: {one_line(error, 100)})", last)


def _problem(document: Document, min_words: int) -> str | None:
    if not document.images:
        return "no image"
    if sum(len(image.data) for image in document.images) > _MAX_IMAGE_BYTES:
        return f"over {_MAX_IMAGE_BYTES >> 20} MiB of images"
    if not has_words(document, min_words):
        return f"under {min_words} words"
    return None


def valid_document(document: Document) -> Document:
    """Return the document with halves of characters replaced, which no shard can hold."""
    segments = tuple(Text(valid_text(s.text)) if isinstance(s, Text) else s for s in document.segments)
    return Document(valid_text(document.id), valid_text(document.source), segments)


def _drawn_split(key: str, held_out: float) -> str:
    if held_out == 0:
        return "all"
    return "held_out" if is_held_out(key, held_out) else "train"


def _write_failure(file: Any, reason: str, name: str) -> None:
    file.write(json.dumps({"sample": name, "reason": reason}) + "\n")


def _store(job: Job, work: WorkFolder, scratch: Path, split: str, index: int) -> list[dict[str, Any]]:
    """Bring a split's shards to their place; return their entries in the index of the whole."""
    made = scratch / split
    shards = json.loads((made / "index.json").read_text())["shards"]
    (made / "index.json").unlink()
    os.replace(made / SIZES_FILE, work.sizes(index, split))
    folder = f"{index:05d}"
    if job.remote is None:
        target = work.root / split_folder(split) / folder
        target.parent.mkdir(exist_ok=True)  # not its parents: a finished conversion has moved the folder away
        _publish(made, target, scratch)
    else:
        remote = "/".join(filter(None, (job.remote, split_folder(split), folder)))
        sending = scratch / f"{split}.upload"
        upload(sorted(made.iterdir()), remote, sending)
    for shard in shards:
        for key in ("raw_data", "zip_data"):
            if shard[key]:
                shard[key]["basename"] = f"{folder}/{shard[key]['basename']}"
    return shards


def _publish(made: Path, target: Path, scratch: Path) -> None:
    """Rename a folder of shards to its place, in one step.

    What is there is of a process that died before the record, or that does this part, too. It has the same
    bytes and stays, but for files that a machine lost power over.
    """
    try:
        os.rename(made, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if _sizes(target) != _sizes(made):
            os.rename(target, scratch / f"{made.name}.lost")
            os.rename(made, target)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def _stored_bytes(shard: dict[str, Any]) -> int:
    return (shard["zip_data"] or shard["raw_data"])["bytes"]
