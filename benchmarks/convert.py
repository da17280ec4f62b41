"""How many images and documents a core converts, against the same job by a plain script.

    python benchmarks/convert.py [--rounds 3] [--kind html] [--copies 40]   # needs webdataset (extra bench)

Made-up sources of JPEGs with 512 px: pages as long as those of gimp-help-en with their images beside them
(html), the same embedded in Parquet (obelics), and tars of pairs (img2dataset). The plain scripts
(``benchmarks/plain_convert.py``) read them with selectolax, pyarrow and webdataset, look at each image with
Pillow and write it with MDSWriter, in one process: once decoding each image, as webdataset's ``decode`` does,
and once reading no more than its header, as we do without ``--verify``. All write the same columns with the
same compression and hashes. They take turns; rates are by CPU time, so that other work on the machine does
not count, and by the clock.

Two workers take seconds to start and are only worth it for more: a second table converts each source so
many times over (``--copies``, in folders of links), once with one worker and once with two, by the clock. It
needs an idle machine with two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import plain_convert, rivals  # noqa: E402
from benchmarks.loader import page, photograph, sentence  # noqa: E402
from lcl_composer.convert.engine import convert  # noqa: E402
from lcl_composer.convert.html import HTML  # noqa: E402
from lcl_composer.convert.img2dataset import Img2Dataset  # noqa: E402
from lcl_composer.convert.obelics import Obelics  # noqa: E402
from lcl_composer.convert.source import Source  # noqa: E402
from lcl_composer.data.document import Document, Text  # noqa: E402

_SIDES = [(512, 512), (512, 384), (384, 512), (512, 341), (341, 512)]


def write_pages(documents: Sequence[Document], folder: Path) -> None:
    """Write documents as web pages, with a menu, and each image as a file of its own."""
    folder.mkdir()
    for document in documents:
        body, number = [], 0
        for segment in document.segments:
            if isinstance(segment, Text):
                body.append(f"<p>{segment.text}</p>")
                continue
            name = f"{document.id}-{number}.jpg"
            (folder / name).write_bytes(segment.data)
            body.append(f'<figure><img src="{name}" alt="An image"></figure>')
            number += 1
        menu = "".join(f'<li><a href="{i}.html">Chapter {i}</a></li>' for i in range(20))
        html = f"<html><head><title>{document.id}</title></head><body><nav><ul>{menu}</ul></nav>"
        (folder / f"{document.id}.html").write_text(f"{html}<main>{''.join(body)}</main></body></html>")


def write_parquet(documents: Sequence[Document], folder: Path) -> None:
    """Write documents in the layout of OBELICS with the images embedded, in two files."""
    folder.mkdir()
    for number in range(2):
        rows = [list(document.segments) for document in documents[number::2]]
        columns = {
            "images": [[None if isinstance(s, Text) else _url(s.data) for s in row] for row in rows],
            "texts": [[s.text if isinstance(s, Text) else None for s in row] for row in rows],
            "bytes": [[None if isinstance(s, Text) else s.data for s in row] for row in rows],
        }
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=50)


def _url(data: bytes) -> str:
    return f"http://made.up/{sha256(data).hexdigest()}.jpg"


def write_tars(documents: Sequence[Document], folder: Path) -> None:
    """Write pairs in the layout of img2dataset, in two tars."""
    folder.mkdir()
    for number in range(2):
        rivals.write_tar(documents[number::2], folder / f"{number:05}.tar")


def write_copies(source: Path, folder: Path, copies: int) -> None:
    """Lay the files of a source into several folders, as links: no copy takes room."""
    for number in range(copies):
        here = folder / f"{number:03}"
        here.mkdir(parents=True)
        for path in source.iterdir():
            os.link(path, here / path.name)


def race(
    rows: dict[str, Callable[[Path], None]], rounds: int, folder: Path
) -> dict[str, tuple[float, float]]:
    """Let conversions take turns; return the median CPU seconds and seconds by the clock of each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for turn in range(rounds + 1):
        for name, run in rows.items():
            out = folder / "out"
            start = time.process_time(), time.monotonic()
            run(out)
            if turn:  # the first one warms up
                times[name].append((time.process_time() - start[0], time.monotonic() - start[1]))
            shutil.rmtree(out)
    return {name: tuple(np.median(np.array(found), axis=0)) for name, found in times.items()}


def ours(source: Source, workers: int) -> Callable[[Path], None]:
    """Return our conversion of a source."""
    return lambda out: void(convert(source, str(out), workers=workers, progress=False))


def print_workers(sources: dict[str, tuple[Source, Sequence[Document]]], folder: Path, copies: int) -> None:
    """Print what a second worker brings where there is enough to convert."""
    print("\n| source | documents | 1 worker | 2 workers | times as fast |\n| --- | --- | --- | --- | --- |")
    for kind, (source, documents) in sources.items():
        many = folder / "many"
        write_copies(source.source, many, copies)
        seconds = []
        for workers in (1, 2):
            start = time.monotonic()
            ours(replace(source, source=many), workers)(folder / "out")
            seconds.append(time.monotonic() - start)
            shutil.rmtree(folder / "out")
        shutil.rmtree(many)
        one, two = seconds
        count = copies * len(documents)
        print(f"| {kind} | {count:,} | {one:.1f} s | {two:.1f} s | {one / two:.2f} |", flush=True)


def void(_: object) -> None:
    """Drop a result."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=3, help="conversions of each (default: 3)")
    parser.add_argument("--kind", choices=("html", "img2dataset", "obelics"), help="only this one")
    parser.add_argument("--copies", type=int, default=40, help="of each source for two workers (default: 40)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images = [photograph(*_SIDES[i % len(_SIDES)], rng) for i in range(20)]
    pairs = [rivals.as_pair(i, sentence(rng, 12), images[i % len(images)]) for i in range(600)]
    pages = [page(i, images, rng) for i in range(120)]
    columns = (
        "source | converter | images/s a core | documents/s a core | ratio | images/s by the clock | ratio"
    )
    print(f"| {columns} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pages(pages, folder / "html")
        write_parquet(pages, folder / "obelics")
        write_tars(pairs, folder / "img2dataset")
        sources: dict[str, tuple[Source, Sequence[Document]]] = {
            "html": (HTML(folder / "html"), pages),
            "img2dataset": (Img2Dataset(folder / "img2dataset"), pairs),
            "obelics": (Obelics(folder / "obelics", bytes_column="bytes"), pages),
        }
        sources = {kind: of for kind, of in sources.items() if arguments.kind in (None, kind)}
        for kind, (source, documents) in sources.items():
            plain = plain_convert.SCRIPTS[kind]
            rows = {
                "plain script": lambda out, plain=plain, kind=kind: plain(folder / kind, out, True),
                "plain script, headers only": lambda out, plain=plain, kind=kind: plain(
                    folder / kind, out, False
                ),
                "ours, 1 worker": ours(source, 1),
            }
            times = race(rows, arguments.rounds, folder)
            count = sum(len(document.images) for document in documents)
            base = times["plain script"]
            for who, (seconds, clock) in times.items():
                core = f"{count / seconds:.0f} | {len(documents) / seconds:.0f} | {base[0] / seconds:.2f}"
                print(
                    f"| {kind} | {who} | {core} | {count / clock:.0f} | {base[1] / clock:.2f} |", flush=True
                )
        print_workers(sources, folder, arguments.copies)


if __name__ == "__main__":
    main()
