"""Runs side by side on one page that needs nothing from outside itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from lcl_composer.report.pictures import Query, attention_maps, gallery
from lcl_composer.report.results import results, throughput
from lcl_composer.report.run import Run
from lcl_composer.report.series import curves
from lcl_composer.report.variants import ABSENT, Line, Variant, alike, as_text, differing, group

TEMPLATES = Path(__file__).parent / "templates"

#: Facts of ``environment.json`` that always differ and say nothing about the machine.
_NOT_COMPARED = {"started", "command", "git.untracked"}


def render(runs: Sequence[Run], version: str) -> str:
    """Return the page.

    Args:
        runs: What :func:`lcl_composer.report.run.read_runs` returns.
        version: Of LCL-Composer, named in the foot.
    """
    variants = group(runs)
    settings = differing(variants)
    environment = [*environment_lines(variants)]
    script = (TEMPLATES / "report.js").read_text()
    page = page_template("report.html.j2").render(
        variants=variants,
        runs=runs,
        number_of={run.name: i for i, variant in enumerate(variants) for run in variant.runs},
        settings=settings,
        alike=alike(variants),
        results=results(variants, settings),
        throughput=throughput(variants),
        galleries=galleries(variants),
        attention=[(i, *attention_maps(variant)) for i, variant in enumerate(variants)],
        environment=[line for line in environment if len(set(line.cells)) > 1],
        same_environment=[line for line in environment if len(set(line.cells)) == 1],
        data=embedded(curves_of(variants)),
        css=Markup((TEMPLATES / "report.css").read_text()),
        script=Markup(script),
        policy=policy(script),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=version,
    )
    return page.lstrip()


def curves_of(variants: Sequence[Variant]) -> dict[str, Any]:
    """Curves of all runs, each with the number of its variant."""
    runs = [run for variant in variants for run in variant.runs]
    data = curves(runs)
    numbers = [i for i, variant in enumerate(variants) for _ in variant.runs]
    for entry, number in zip(data["runs"], numbers, strict=True):
        entry["variant"] = number
    return {**data, "variants": [variant.name for variant in variants]}


def embedded(data: Any) -> Markup:
    """JSON that is safe inside a script element: no name in it can close the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def policy(script: str = "") -> str:
    """What a page may do: run its own script, by its hash, and load nothing.

    Names and texts come from runs, and the templates escape them; what slipped through would do nothing.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    allowed = f"'sha256-{digest}'" if script else "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def page_template(name: str) -> Template:
    """A page of the folder ``templates``, which knows the filters ``breakable`` and ``tone``."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    jinja.lstrip_blocks = True
    jinja.filters |= {"breakable": breakable, "tone": tone}
    return jinja.get_template(name)


def galleries(variants: Sequence[Variant]) -> list[tuple[str, str, list[Query]]]:
    """Title, key and queries of each way of retrieval that a variant has pictures of."""
    found = ((way, gallery(variants, way)) for way in ("text_to_image", "image_to_text"))
    return [(way.replace("_", " ").capitalize(), way, queries) for way, queries in found if queries]


def breakable(name: str) -> Markup:
    """A name, escaped, that may be broken over lines behind its punctuation."""
    return Markup("<wbr>").join(escape(part) for part in re.findall(r"[^-_./=]*[-_./=]*", name) if part)


def tone(number: int) -> str:
    """CSS classes of a variant's colour, one of ten that come again with open swatches and dashed lines."""
    return f"v{number % 10}" + " again" * (number >= 10)


def environment_lines(variants: Sequence[Variant]) -> Iterable[Line]:
    """Versions, machine and source, one cell a variant; several values where its runs differ."""
    columns = [[_environment(run) for run in variant.runs] for variant in variants]
    keys = dict.fromkeys(key for runs in columns for facts in runs for key in facts)
    for key in keys:
        values = [dict.fromkeys(facts.get(key, ABSENT) for facts in runs) for runs in columns]
        yield Line(key, tuple(", ".join(found) for found in values))


def _environment(run: Run) -> dict[str, str]:
    """Facts of a run's machine and source as text, flat."""
    facts: dict[str, str] = {}
    for key, value in run.environment.items():
        nested = value if isinstance(value, dict) else {}
        flat = {f"{key}.{name}": v for name, v in nested.items()} or {key: value}
        facts |= {
            k.removeprefix("packages."): _short(k, v) for k, v in flat.items() if k not in _NOT_COMPARED
        }
    return facts


def _short(key: str, value: Any) -> str:
    if key == "git.commit":
        return str(value)[:12]
    if key == "devices" and isinstance(value, list) and all(isinstance(name, str) for name in value):
        return ", ".join(f"{value.count(name)} x {name}" for name in dict.fromkeys(value))
    return as_text(value)
