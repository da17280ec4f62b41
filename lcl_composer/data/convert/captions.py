"""A folder of images with captions in ``.txt`` files beside them -> Documents."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from lcl_composer.data.convert.images import SUFFIXES, ImageRejected, read_image
from lcl_composer.data.convert.output import conversion_output
from lcl_composer.data.convert.report import ConversionReport
from lcl_composer.data.convert.text import decode_text, name_in, one_line
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.errors import DataError


def convert_captions(
    folder: Path,
    out: str,
    *,
    min_side: int = 16,
    held_out: float = 0.0,
    verify: bool = False,
    progress: bool = True,
) -> ConversionReport:
    """Convert a folder of captioned images: ``name.png`` and ``name.txt``, whose first line is the caption.

    One document a pair; the image floats, so it is drawn before or after its caption anew every epoch.

    Args:
        folder: Folder with the pairs, searched to any depth.
        out: Folder for the MDS shards; with ``held_out`` its subfolders ``train`` and ``held_out``.
        min_side: Images with a shorter side, in pixels, are dropped. Lower than for web pages: who wrote a
            caption for a thin pencil meant it, and it is no icon.
        held_out: Share of the captions to hold out, chosen by a hash of the caption: several images may
            have one caption, and none of training may stand among the held-out ones.
        verify: Decode every image to find broken ones now and not in training.
        progress: Show a progress bar.

    Raises:
        DataError: If ``folder`` is no folder or gives no pair, or ``out`` exists already.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder that holds the images and .txt files")
    options = {"min_side": min_side, "held_out": held_out, "verify": verify}
    report = ConversionReport("captions", str(folder), options)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    with conversion_output(out, held_out, report) as output:
        for path in tqdm(paths, "images", unit="image", disable=not progress):
            report.read += 1
            name = name_in(path, folder)
            try:
                caption = _read_caption(path.with_suffix(".txt"))
                image = Image(read_image(path, min_side, verify), floats=True)
            except ImageRejected as reason:
                report.drop(str(reason), name)
                continue
            document = Document(name, f"{folder.name}/{name}", (image, Text(caption)))
            output.write(document, caption.casefold())
    return report


def _read_caption(path: Path) -> str:
    try:
        lines = decode_text(path.read_bytes()).splitlines()
    except FileNotFoundError as error:
        raise ImageRejected("caption file missing") from error
    except OSError as error:
        raise ImageRejected(f"caption file unreadable ({error.strerror})") from error
    caption = one_line(lines[0]) if lines else ""
    if not caption:
        raise ImageRejected("caption empty")
    return caption
