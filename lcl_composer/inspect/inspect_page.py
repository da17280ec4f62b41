"""One HTML file that shows a survey: styles, script and images inside it, and nothing loaded from elsewhere.

Texts, ids and sources come from the web. The template escapes all of them, and a content security policy
lets no script run but the page's own, by its hash, so that markup that slipped through would do nothing.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lcl_composer.convert.report import ConversionReport, Distribution
from lcl_composer.inspect.charts import Share, chart, shares
from lcl_composer.inspect.duplicates import Group
from lcl_composer.inspect.health import FATES, Health
from lcl_composer.inspect.survey import Survey

#: Groups of duplicates on the page, and documents named for each.
_GROUPS = 12
_MOST_NAMED = 6


def write_page(survey: Survey, path: Path) -> None:
    """Write the page of a survey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate can be in a text but not in UTF-8.
    path.write_text(render(survey), encoding="utf-8", errors="replace")


def render(survey: Survey) -> str:
    """Return the page of a survey as HTML."""
    environment = Environment(
        loader=PackageLoader("lcl_composer.inspect", "templates"), autoescape=True, undefined=StrictUndefined
    )
    script = _read("page.js")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("page.html.j2").render(
        style=Markup(_read("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **_facts(survey),
    )


def _read(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _facts(survey: Survey) -> dict[str, Any]:
    health, conversion = survey.health, survey.conversion
    groups = health.duplicates.groups()
    return {
        "survey": survey,
        "name": data_set_name(survey.folder),
        "settings": settings(survey),
        "scope": scope(survey),
        "findings": health.findings(),
        "tiles": tiles(survey),
        "health": health,
        "rules": survey.viewer.rules,
        "images": _chart(health.images),
        "texts": _chart(health.text_tokens),
        "tokens": _chart(health.tokens),
        "fates": _fates(health),
        "positions": _positions(health),
        "conversion": conversion,
        "dropped": conversion.dropped.most_common() if conversion else [],
        "left_out": conversion.dropped_images.most_common() if conversion else [],
        "images_read": conversion.images.total + conversion.dropped_images.total() if conversion else 0,
        **_similarity(survey),
        "groups": groups[:_GROUPS],
        "most_named": _MOST_NAMED,
        "shared": _shared,
        "duplicates_scope": _duplicates_scope(health, len(groups)),
    }


def data_set_name(folder: Path) -> str:
    """Return the name of a data set, with that of its parent for a split."""
    folder = folder.absolute()
    split = folder.name in ("train", "held_out", "val", "test", "restval")
    return f"{folder.parent.name}/{folder.name}" if split else folder.name


def settings(survey: Survey) -> list[tuple[str, str]]:
    """Return what the layout depends on, by name."""
    viewer, rules = survey.viewer, survey.viewer.rules
    return [
        ("tokenizer", f"{type(viewer.tokenizer).__name__}, {viewer.tokenizer.vocab_size:,} ids"),
        ("max_tokens", f"{rules.max_tokens:,}"),
        ("tokens an image", f"{rules.tokens_per_image:,}"),
        ("image_first_probability", f"{rules.image_first_probability:g}"),
        ("min_context_tokens", f"{rules.min_context_tokens}"),
        ("crop_scale", "{:g} to {:g}".format(*viewer.augmentation.crop_scale)),
        ("flip_probability", f"{viewer.augmentation.flip_probability:g}"),
        ("seed, epoch", f"{viewer.seed}, {viewer.epoch}"),
    ]


def scope(survey: Survey) -> str:
    """Say how many documents the numbers are of."""
    counted, total = survey.health.documents, survey.documents
    which = (
        f"all {total:,} documents"
        if counted == total
        else f"{counted:,} of {total:,} documents, evenly spread"
    )
    text = f"Computed on {which}."
    if survey.missing_shards:
        text += f" {survey.missing_shards:,} shards of the index are not on this machine and not counted."
    return text


def tiles(survey: Survey) -> list[tuple[str, str, str]]:
    """Return the main numbers: label, value, note."""
    health = survey.health
    images, documents = max(1, health.images.total), max(1, health.documents)
    images_whole, text_whole = _unsplit(survey.conversion)
    lost = health.fates["cut"] + health.fates["unused"]
    return [
        ("Images a document", f"{health.images.mean:.1f}", f"{health.images.total:,} in all"),
        ("Text tokens a document", f"{health.text_tokens.mean:,.0f}", f"{health.text_total:,} in all"),
        ("Images in a pair", f"{health.pairs.total / images:.0%}", f"{health.pairs.mean:.1f} a document"),
        ("Images that reach a loss", f"{health.images_seen:.0%}", f"{lost:,} do not{images_whole}"),
        (
            "Text that reaches a loss",
            f"{health.text_seen:.0%}",
            f"{health.cut_tokens:,} tokens cut{text_whole}",
        ),
        (
            "Documents truncated",
            f"{health.cut_documents / documents:.0%}",
            f"{health.cut_documents:,} in all",
        ),
        (
            "Context used",
            f"{health.context_used:.0%}",
            f"{health.tokens.mean:,.0f} of {health.max_tokens:,} tokens a document",
        ),
        (
            "Duplicate images",
            f"{health.duplicates.repeats / max(1, health.duplicates.images):.0%}",
            f"{health.duplicates.exact_repeats:,} byte for byte",
        ),
        ("Documents skipped", f"{health.bad.total() / documents:.0%}", f"{health.bad.total():,} in training"),
    ]


def _unsplit(conversion: ConversionReport | None) -> tuple[str, str]:
    """Say what shares of images and text would reach a loss had long documents not been split."""
    if conversion is None or not conversion.split["documents"]:
        return "", ""
    images, text = conversion.reach_unsplit
    return f"; {images:.0%} would without splits", f"; {text:.0%} would reach one without splits"


def _chart(values: Distribution) -> Any:
    return chart(values.counts, values.median, values.mean)


def _similarity(survey: Survey) -> dict[str, Any]:
    found = survey.conversion.similarities if survey.conversion else Distribution()
    note = "the source has none." if survey.conversion else "no conversion.json beside the shards."
    return {
        "similarity": chart(found.counts, found.median, found.mean, hundredths=True),
        "similarity_note": note,
    }


def _fates(health: Health) -> list[Share]:
    styles = dict(zip(FATES, "abcde", strict=True))
    return shares([(text, health.fates[fate], styles[fate]) for fate, text in FATES.items()])


def _positions(health: Health) -> list[Share]:
    tokens = health.tokens.total
    marks = 2 * (health.fates["pair, read"] + health.fates["not anchored"]) + health.fates["pair, not read"]
    text = tokens - health.slots - marks
    return shares(
        [
            ("text, with <start_of_text>", text, "c"),
            ("image tokens", health.slots, "a"),
            ("<start_of_img> and <end_of_img>", marks, "d"),
        ]
    )


def _shared(group: Group) -> list[tuple[str, int]]:
    """Return the first documents that hold a duplicate, those that hold it most often first."""
    return sorted(group.documents.items(), key=lambda entry: (-entry[1], entry[0]))[:_MOST_NAMED]


def _duplicates_scope(health: Health, groups: int) -> str:
    found = health.duplicates
    near = found.repeats - found.exact_repeats
    return (
        f"{groups:,} images occur more than once among the {found.images:,} looked at: "
        f"{found.exact_repeats:,} repeats are equal byte for byte, {near:,} look the same in another size or "
        "encoding (alike in difference hash and colours). Duplicates with documents outside the "
        "sample are not found." + (f" The {_GROUPS} most frequent:" if groups > _GROUPS else "")
    )
