"""Runs that differ only in their seed are one variant; what else differs is what the variants are about."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lcl_composer.config.schema import with_all_keys
from lcl_composer.dotted import leaves
from lcl_composer.report.run import Run

#: Stands for a setting that a run does not have.
ABSENT = "–"

#: Settings that say where files go, what is shown and how long is waited, never what is computed.
_HOUSEKEEPING = re.compile(
    r"run_name|save_folder|progress_bar|log_to_console|autoresume|dist_timeout|data\.\w+\.download_\w+"
)


@dataclass(frozen=True)
class Variant:
    """Runs with the same settings but for the seed.

    Attributes:
        name: What the runs' names have in common.
        runs: At least one.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def measured(self) -> tuple[Run, ...]:
        """The runs whose numbers stand in the tables: the finished ones if there are any."""
        return tuple(run for run in self.runs if run.finished) or self.runs

    @property
    def finished(self) -> bool:
        """Whether a run came to its end."""
        return any(run.finished for run in self.runs)

    @property
    def settings(self) -> dict[str, str]:
        """Settings of its first run, flat."""
        return settings_of(self.runs[0])


@dataclass(frozen=True)
class Line:
    """A row of a table of texts: one cell a variant."""

    label: str
    cells: tuple[str, ...]


def settings_of(run: Run) -> dict[str, str]:
    """Dotted keys and values as text; the run's own folder is written ``runs/NAME`` so that it compares."""
    pattern = re.compile(rf"\bruns/{re.escape(str(run.config.get('run_name', run.name)))}(?![\w.-])")
    return {key: pattern.sub("runs/NAME", as_text(value)) for key, value in leaves(with_all_keys(run.config))}


def group(runs: Iterable[Run]) -> list[Variant]:
    """Put runs together that differ only in seeds, in order of the first; one without config stands alone."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in settings_of(run).items() if _is_shown(k)}
        groups.setdefault(tuple(sorted(settings.items())) or run.name, []).append(run)
    names = [_common_name([run.name for run in members]) for members in groups.values()]
    return [
        Variant(name if names.count(name) == 1 else members[0].name, tuple(members))
        for name, members in zip(names, groups.values(), strict=True)
    ]


def differing(variants: list[Variant]) -> list[Line]:
    """The settings in which variants differ, in the order of the config."""
    return [line for line in _lines(variants) if len(set(line.cells)) > 1]


def alike(variants: list[Variant]) -> list[Line]:
    """The settings that all variants share: one cell each."""
    return [Line(line.label, line.cells[:1]) for line in _lines(variants) if len(set(line.cells)) == 1]


def is_seed(key: str) -> bool:
    """Whether a setting is a seed."""
    return key == "seed" or key.endswith(("_seed", ".seed"))


def as_text(value: Any) -> str:
    """A setting as it stands in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _lines(variants: list[Variant]) -> list[Line]:
    columns = [variant.settings for variant in variants]
    keys = dict.fromkeys(key for column in columns for key in column)
    return [Line(key, tuple(c.get(key, ABSENT) for c in columns)) for key in keys if _is_shown(key)]


def _is_shown(key: str) -> bool:
    return not is_seed(key) and not _HOUSEKEEPING.fullmatch(key)


def _common_name(names: list[str]) -> str:
    """The leading words that all names share (``lambda0.1-s17``, ``lambda0.1-s18``: ``lambda0.1``)."""
    if len(names) == 1:
        return names[0]
    split = [re.split(r"([-_ ])", name) for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(shared).rstrip("-_ ") or names[0]
