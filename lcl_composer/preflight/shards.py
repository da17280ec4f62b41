"""Whether the first and the last shard of each stream can be had, whole, and what is in them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.base.format import FileInfo

from lcl_composer.data.document import Document
from lcl_composer.data.shards import read_places
from lcl_composer.data.sources import DocumentSource, trained_on
from lcl_composer.errors import DataError
from lcl_composer.preflight.finding import Finding, fail, ok, size, warn

if TYPE_CHECKING:
    from lcl_composer.config.schema import StreamConfig
    from lcl_composer.preflight.plan import Plan

#: Documents that are taken from a stream for the size of a batch.
_DOCUMENTS = 8


@dataclass
class Looked:
    """What was seen of one set of shards.

    Attributes:
        key: Its place in the configuration.
        folder: Its local folder.
        fetches: Whether shards come from a remote.
        shards: The entries of its index; empty if it could not be had.
        documents: Some of its documents.
        fetched: Bytes that were fetched, in ``seconds``.
        problem: What is wrong; "" for nothing.
        made: The run generates it.
    """

    key: str
    folder: Path
    fetches: bool
    shards: list[dict[str, Any]] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    fetched: int = 0
    seconds: float = 0.0
    problem: str = ""
    made: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of all its shards, as they lie in a cache."""
        return sum(shard["raw_data"]["bytes"] for shard in self.shards)

    @property
    def largest(self) -> int:
        """Bytes of its largest shard, with what it is unpacked from."""
        return max((sum(info.bytes for info in files(shard)) for shard in self.shards), default=0)

    @property
    def samples(self) -> int:
        """Its documents."""
        return sum(shard["samples"] for shard in self.shards)


def shards(plan: Plan) -> Finding:
    """The index, the first and the last shard of each stream, whole."""
    looked = [seen for group in plan.looked.values() for seen in group]
    if problems := [seen.problem for seen in looked if seen.problem]:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return fail(problems[0] + more)
    made = [seen.key for seen in looked if seen.made]
    here = [seen for seen in looked if not seen.made]
    said = [f"{seen.samples:,} documents in {len(seen.shards):,} shards" for seen in here]
    fetched, seconds = sum(seen.fetched for seen in here), sum(seen.seconds for seen in here)
    if fetched:
        said.append(f"{size(fetched)} fetched at {size(fetched / max(seconds, 1e-6))}/s")
    if made and plan.world.nodes > 1:
        return warn(f"{made[0]} is generated on each node; convert it once, to where all nodes see it")
    return ok("; ".join([*said, *(f"{key}: to be generated" for key in made)]))


def look(key: str, settings: StreamConfig) -> list[Looked]:
    """Look at each set of shards of ``data.train`` or ``data.eval``, the ``key``."""
    from lcl_composer.data.loader import sources_of

    found = []
    for source in sources_of(key, settings):
        seen = Looked(source.source.key, source.folder, source.can_fetch)
        if settings.generate is not None and not (source.folder / "index.json").is_file():
            seen.made = True
        else:
            try:
                _look(source, seen, settings)
            except DataError as error:
                seen.problem = str(error)
        found.append(seen)
    return found


def files(shard: dict[str, Any]) -> list[FileInfo]:
    """The files of a shard, the compressed one first where there is one."""
    return [FileInfo(**shard[name]) for name in ("zip_data", "raw_data") if shard[name]]


def _look(source: DocumentSource, seen: Looked, settings: StreamConfig) -> None:
    """Fill in what is seen; what has to be fetched goes to a folder that is removed again."""
    if not source.can_fetch:
        seen.shards, _ = trained_on(_index(source))
        for shard in _ends(seen.shards):
            _check_here(source, shard)
        seen.documents = _documents(source.folder, seen.shards[0])
        return
    with tempfile.TemporaryDirectory(prefix="lcl-preflight-") as folder:
        elsewhere = DocumentSource(
            replace(source.source, local=folder),
            download_retry=min(settings.download_retry, 2),  # a person waits for the answer
            download_timeout=settings.download_timeout,
            validate_hash=settings.validate_hash,
        )
        begun = time.monotonic()
        seen.shards, _ = trained_on(Path(elsewhere._download_file("index.json")))
        for shard in _ends(seen.shards):
            info = files(shard)[0]
            elsewhere._download_file(info.basename)
            seen.fetched += info.bytes
            if problem := elsewhere.damage(info):
                remote = f"{source.remote}/{source.split or ''}".rstrip("/")
                problem = problem.removeprefix(f"{elsewhere.folder}/")
                raise DataError(f"{seen.key}: {problem}; it is damaged at {remote}: convert it anew")
        seen.seconds = time.monotonic() - begun
        seen.documents = _documents(elsewhere.folder, seen.shards[0])


def _index(source: DocumentSource) -> Path:
    path = source.folder / "index.json"
    if not path.is_file():
        raise DataError(
            f"{source.source.key}: no data set in {source.folder} on this node (no index.json there); put it "
            "where all nodes see it, or set remote"
        )
    return path


def _check_here(source: DocumentSource, shard: dict[str, Any]) -> None:
    for info in files(shard):
        if (source.folder / info.basename).is_file():
            if problem := source.damage(info):
                raise DataError(f"{source.source.key}: {problem}; copy or convert it anew")
            return
    missing = source.folder / files(shard)[0].basename
    raise DataError(f"{source.source.key}: {missing} is missing; copy or convert it anew")


def _ends(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entries[0], entries[-1]] if len(entries) > 1 else [entries[0]]


def _documents(folder: Path, shard: dict[str, Any]) -> list[Document]:
    some = read_places(folder, shard, range(shard["samples"]))
    return [document for document in islice(some, _DOCUMENTS) if isinstance(document, Document)]
