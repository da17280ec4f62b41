"""`lcl inspect`: a data set as the model will see it, in the terminal or as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcl_composer.errors import ConfigError
from lcl_composer.inspect.health import FATES
from lcl_composer.inspect.histogram import histogram
from lcl_composer.inspect.inspect_page import data_set_name, scope, settings, tiles, write_page
from lcl_composer.inspect.survey import Shown, Survey, survey
from lcl_composer.inspect.view import Viewer
from lcl_composer.links import links_out

_BLOCKS = " ▁▂▃▄▅▆▇█"
#: Links out of a data set that are named.
_LINKS = 10


#: Flags that a run's YAML stands for.
_OF_THE_RUN = frozenset(
    (
        *("tokenizer", "max_tokens", "tokens_per_image", "image_first_probability", "min_context_tokens"),
        *("image_size", "seed"),
    )
)


def viewer_of_run(path: Path, flags: set[str], epoch: int) -> tuple[Viewer, int]:
    """Return what sees documents as a run will, and the side of its images in pixels.

    Args:
        path: The run's YAML.
        flags: Options given beside it.
        epoch: Epoch, from 0.

    Raises:
        ConfigError: If a flag says what the YAML says too, or the YAML has mistakes.
        DataError: If the tokenizer's file is missing.
    """
    import torch

    from lcl_composer import registry
    from lcl_composer.config import compose
    from lcl_composer.data.image import Augmentation
    from lcl_composer.methods.build import build_tokenizer, layout_rules

    if twice := sorted(flags & _OF_THE_RUN):
        raise ConfigError(f"--{twice[0].replace('_', '-')}: --config says it already; give one of them")
    run = compose(path, []).run
    with torch.device("meta"):
        encoder = registry.encoders.build(run.model.encoder.spec())
    rules = layout_rules(run, encoder.tokens_per_image)
    augmentation = Augmentation(run.data.crop_scale, run.data.flip_probability)
    return Viewer(build_tokenizer(run), rules, run.seed, epoch, augmentation), run.data.image_size


def print_inspection(
    folder: Path, page: Path | None, viewer: Viewer, *, documents: int, sample: int, image_size: int
) -> None:
    """Inspect a data set: write the page if one is named, otherwise print a summary.

    Args:
        folder: MDS shards of Documents.
        page: HTML file to write, or None.
        viewer: Sees documents as the model will.
        documents: Documents to show.
        sample: Documents to count.
        image_size: Side of the images that the model gets, in pixels.

    Raises:
        LCLError: If the data set cannot be read.
    """
    console = Console()
    for link in islice(links_out(folder), _LINKS) if folder.is_dir() else ():
        named = f"! {link} is a link out of the data set, to {os.path.realpath(link)}"
        console.print(_printable(named), style="bold yellow", highlight=False)
    found = survey(folder, viewer, image_size, sample, documents, progress=console.is_terminal)
    if page is None:
        print_survey(found, console)
        return
    try:
        write_page(found, page)
    except OSError as error:
        raise ConfigError(f"inspect: --html {page}: cannot be written: {error.strerror}") from error
    console.print(
        f"{_printable(str(page))}: {len(found.shown)} documents shown. {scope(found)}", highlight=False
    )


def print_survey(found: Survey, console: Console) -> None:
    """Print the numbers of a survey and a line for each document shown."""
    console.print(f"[bold]{_printable(data_set_name(found.folder))}[/bold]  {scope(found)}", highlight=False)
    console.print(
        ", ".join(f"{name} {value}" for name, value in settings(found)), style="dim", highlight=False
    )
    for finding in found.health.findings():
        console.print(f"! {finding}", style="bold yellow", highlight=False)
    console.print(_numbers(found))
    console.print(_documents(found.shown))


def _numbers(found: Survey) -> Table:
    health, conversion = found.health, found.conversion
    table = Table(title="Health", show_header=False, title_justify="left")
    for label, value, note in tiles(found):
        table.add_row(label, value, note)
    for label, values in (
        ("Images a document", health.images),
        ("Text tokens a document", health.text_tokens),
        ("Tokens a document, as run", health.tokens),
    ):
        table.add_row(
            label, bars(values.counts), f"{min(values.counts, default=0):,} to {_top(values.counts):,}"
        )
    for fate, text in FATES.items():
        share = health.fates[fate] / max(1, health.images.total)
        table.add_row("Images", f"{share:.1%}", text)
    if conversion is None:
        table.add_row("Conversion", "not recorded", "no conversion.json beside the shards")
        return table
    for reason, count in conversion.dropped.most_common(5):
        table.add_row("Dropped documents", f"{count / max(1, conversion.read):.1%}", _printable(reason))
    similarities = conversion.similarities.counts
    span = f"{min(similarities, default=0) / 100:.2f} to {_top(similarities) / 100:.2f}"
    table.add_row("Similarity", bars(similarities) or "not recorded", span if similarities else "")
    return table


def _documents(shown: list[Shown]) -> Table:
    table = Table("document", "tokens", "predicted", "pairs", "cut", "begins", title="Documents")
    table.title_justify = "left"
    for one in shown:
        layout, view = one.view.layout, one.view
        pairs = f"{int((layout.anchors >= 0).sum())} of {len(view.images)}"
        cut = f"{layout.cut_tokens:,} + {layout.cut_images} images" if view.cut else ""
        start = one.problem or _beginning(one)
        row = (view.document.id, f"{len(layout.tokens):,}", f"{view.targets:,}", pairs, cut, start)
        table.add_row(*map(_printable, row), style="red" if one.problem else "")
    return table


def _beginning(one: Shown, most: int = 60) -> str:
    """Return the first words of a document, images as a square."""
    pieces = (
        "".join(p.text for p in row.pieces if not p.mark) if hasattr(row, "use") else "▣ "
        for row in one.view.rows
    )
    text = " ".join("".join(pieces).split())
    return text[:most] + "…" * (len(text) > most)


def _printable(text: str) -> str:
    """Return a text from the web for the terminal: no control sequences, no markup."""
    return escape("".join(c if c.isprintable() else "�" for c in text))


def bars(counts: Mapping[int, int]) -> str:
    """Return a histogram as a line of block characters; empty when nothing was counted."""
    found = histogram(counts)
    tallest = max((bar.count for bar in found), default=1)
    return "".join(_BLOCKS[-(-8 * bar.count // tallest)] for bar in found)


def _top(counts: Mapping[int, int]) -> int:
    return max(counts, default=0)
