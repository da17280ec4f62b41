"""Goes once through a sample of a data set: counts all of it, keeps a few documents to show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.result import REPORT_FILE
from lcl_composer.data.shards import open_shards, sample, spread
from lcl_composer.errors import DataError
from lcl_composer.inspect.health import Health
from lcl_composer.inspect.pictures import Picture, picture
from lcl_composer.inspect.view import DocumentView, Viewer


@dataclass(frozen=True, slots=True)
class Shown:
    """A document to show.

    Attributes:
        view: The document as the model will see it.
        problem: Why training would skip it; empty if it does not.
        pictures: Its images, in its order; of one that cannot be decoded, what is wrong.
    """

    view: DocumentView
    problem: str
    pictures: list[Picture | str]


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        folder: The data set.
        documents: Documents it has on this machine.
        missing_shards: Shards of its index that are elsewhere.
        viewer: How documents were laid out.
        image_size: Side of the images that the model gets, in pixels.
        health: Counts over the sample.
        shown: A few documents of the sample.
        conversion: The converter's report, if it lies beside the shards.
    """

    folder: Path
    documents: int
    missing_shards: int
    viewer: Viewer
    image_size: int
    health: Health
    shown: list[Shown]
    conversion: ConversionReport | None


def survey(folder: Path, viewer: Viewer, image_size: int, count: int, show: int, progress: bool) -> Survey:
    """Lay out a sample of a data set's documents, count, and keep some of them.

    Args:
        folder: MDS shards of Documents.
        viewer: How to lay documents out.
        image_size: Side of the images that the model gets, in pixels.
        count: Documents to count, spread evenly; fewer where the data set is smaller.
        show: Documents among them to keep, spread evenly.
        progress: Show a progress bar.

    Raises:
        DataError: If the folder is no data set of Documents, or a shard is damaged.
    """
    shards, conversion = open_shards(folder), _conversion(folder)
    health, shown = Health(viewer.rules.max_tokens), []
    count = max(count, show)
    wanted = set(spread(min(count, shards.documents), show))
    found = track(
        sample(shards, count),
        f"Reading {folder.name}",
        min(count, shards.documents),
        disable=not progress,
        transient=True,
    )
    for number, document in enumerate(found):
        if isinstance(document, DataError):
            health.add_broken(document)
            continue
        view = viewer.view(document)
        problem = health.add(view, viewer.rules.tokens_per_image)
        if number in wanted:
            shown.append(Shown(view, problem, _pictures(view, viewer, image_size)))
    return Survey(
        folder,
        shards.documents,
        shards.missing,
        viewer,
        image_size,
        health,
        shown,
        conversion,
    )


def _pictures(view: DocumentView, viewer: Viewer, image_size: int) -> list[Picture | str]:
    pictures: list[Picture | str] = []
    for index, encoded in enumerate(view.document.images):
        try:
            pictures.append(picture(encoded.data, image_size, viewer, view.document.id, index))
        except DataError as error:
            pictures.append(str(error))
    return pictures


def split_limits(folder: Path) -> tuple[int, int]:
    """Return ``max_tokens`` and ``tokens_per_image`` that documents were split for; 2048 and 196 if whole.

    Raises:
        DataError: If the report of the conversion cannot be read.
    """
    conversion = _conversion(folder)
    options = conversion.options if conversion else {}
    return (options["max_tokens"], options["tokens_per_image"]) if options.get("max_tokens") else (2048, 196)


def _conversion(folder: Path) -> ConversionReport | None:
    """Return the report beside the shards, or beside the splits; None if there is none.

    Raises:
        DataError: If it cannot be read.
    """
    for path in (folder / REPORT_FILE, folder.absolute().parent / REPORT_FILE):
        if path.is_file():
            try:
                return ConversionReport.load(path)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(
                    f"{path}: not the report of a conversion ({type(error).__name__}: {error}); "
                    "convert the data anew, or remove this file to inspect without it"
                ) from error
    return None
