"""A folder of web pages with local images -> Documents."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from lcl_composer.data.convert.images import ImageRejected, read_image
from lcl_composer.data.convert.output import conversion_output
from lcl_composer.data.convert.page import ImageReference, page_content
from lcl_composer.data.convert.report import ConversionReport
from lcl_composer.data.convert.text import decode_html, name_in
from lcl_composer.data.document import Document, Image, Segment, Text
from lcl_composer.errors import DataError

_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})


def convert_html(
    pages: Path,
    out: str,
    *,
    min_words: int = 20,
    min_side: int = 64,
    held_out: float = 0.0,
    verify: bool = False,
    progress: bool = True,
) -> ConversionReport:
    """Convert a folder of web pages and the images beside them.

    One document a page: text and images in reading order, images fixed in their places, bytes unchanged.

    Args:
        pages: Folder with ``.html`` files, searched to any depth; no image outside it is read.
        out: Folder for the MDS shards; with ``held_out`` its subfolders ``train`` and ``held_out``.
        min_words: Pages with fewer words are dropped.
        min_side: Images with a shorter side, in pixels, are icons and are left out.
        held_out: Share of the pages, chosen by a hash of their paths, to hold out.
        verify: Decode every image to find broken ones now and not in training.
        progress: Show a progress bar.

    Raises:
        DataError: If ``pages`` is no folder or gives no document, or ``out`` exists already.
    """
    if not pages.is_dir():
        raise DataError(f"{pages}: no such folder; name the folder that holds the .html files")
    options = {"min_words": min_words, "min_side": min_side, "held_out": held_out, "verify": verify}
    report = ConversionReport("html", str(pages), options)
    paths = sorted(p for p in pages.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    with conversion_output(out, held_out, report) as output:
        for path in tqdm(paths, "pages", unit="page", disable=not progress):
            report.read += 1
            document = _read_page(path, pages, report, min_words, min_side, verify)
            if document is not None:
                output.write(document, document.id)
    return report


def _read_page(
    path: Path, root: Path, report: ConversionReport, min_words: int, min_side: int, verify: bool
) -> Document | None:
    name = name_in(path, root)
    try:
        html = decode_html(path.read_bytes())
    except OSError as error:
        report.drop(f"page unreadable ({error.strerror})", name)
        return None
    segments: list[Segment] = []
    for part in page_content(html):
        if isinstance(part, ImageReference):
            try:
                segments.append(Image(read_image(_resolve(part.src, path, root), min_side, verify)))
            except ImageRejected as reason:
                report.drop_image(str(reason), f"{name}: {part.src[:200]}")
        elif segments and isinstance(segments[-1], Text):
            segments[-1] = Text(f"{segments[-1].text}\n\n{part}")
        else:
            segments.append(Text(part))
    return _judge(Document(name, f"{root.name}/{name}", tuple(segments)), report, min_words)


def _judge(document: Document, report: ConversionReport, min_words: int) -> Document | None:
    words = sum(len(s.text.split()) for s in document.segments if isinstance(s, Text))
    if not document.images:
        report.drop("no image", document.id)
    elif words < min_words:
        report.drop(f"under {min_words} words", document.id)
    else:
        return document
    return None


def _resolve(src: str, page: Path, root: Path) -> Path:
    """Return the file that an ``<img src>`` of ``page`` names; a path from ``/`` starts at ``root``.

    Raises:
        ImageRejected: If it names none, or one outside ``root``, by ``..`` or through a link.
    """
    try:
        url = urlsplit(src)
    except ValueError as error:
        raise ImageRejected("src is no URL") from error
    if url.scheme == "data":
        raise ImageRejected("embedded in the page (data:)")
    if url.scheme or url.netloc:
        raise ImageRejected("not a local file")
    name = unquote(url.path)
    if not name or "\0" in name:
        raise ImageRejected("no src")
    base = root if name.startswith("/") else page.parent
    try:
        path = (base / name.lstrip("/")).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long
        raise ImageRejected("file missing") from error
    if not path.is_relative_to(root.resolve()):
        raise ImageRejected("path climbs out of the folder")
    return path
