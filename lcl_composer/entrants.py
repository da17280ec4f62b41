"""The encoders that are evaluated: a folder or settings, each told from the others by what it holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yaml import YAMLError

from lcl_composer.config.core_schema import parse_yaml
from lcl_composer.errors import ConfigError, one_line
from lcl_composer.inputs import digest_of
from lcl_composer.models.exported import CONFIG_FILE
from lcl_composer.registry import encoders


@dataclass(frozen=True)
class Entrant:
    """An encoder that is evaluated.

    Attributes:
        label: Its column; encoders of one label are one kind, such as seeds of a recipe, and are averaged.
        name: In the names of its runs.
        spec: What ``model.encoder`` becomes.
        digest: SHA-256 of its files, or of its settings and the files that they name.
        image_size: Side of its images in pixels.
    """

    label: str
    name: str
    spec: dict[str, Any]
    digest: str
    image_size: int


def read_entrants(arguments: Sequence[str]) -> list[Entrant]:
    """The encoders that are named: ``FOLDER`` or, as in ``model.encoder``, ``{name: ..., ...}``.

    ``LABEL=`` may stand before either.

    Raises:
        ConfigError: If one cannot be ``model.encoder``, is named twice, a label is none, or two share one
            unasked.
        DataError: If a folder is no exported encoder, or a file of another encoder is missing or damaged.
    """
    found: list[Entrant] = []
    given: dict[str, bool] = {}
    for argument in arguments:
        label, text = _split_label(argument)
        spec = _settings(text) if text.startswith("{") else {"name": "exported", "folder": text}
        entrant = _entrant(argument, label, spec)
        if any(entrant.digest == other.digest for other in found):
            raise ConfigError(f"{argument}: the same encoder is named twice; leave one out")
        if entrant.label in given and not (label and given[entrant.label]):
            raise ConfigError(
                f"{argument}: another encoder is called {entrant.label!r} too; write LABEL={text}, the same "
                "label for encoders to be averaged"
            )
        given[entrant.label] = bool(label)
        found.append(entrant)
    return found


def _split_label(argument: str) -> tuple[str, str]:
    """Label, "" where there is none, and what it stands before."""
    label, equals, text = argument.partition("=")
    if argument.startswith("{") or not equals or "/" in label or os.path.exists(argument):
        return "", argument
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", label):
        raise ConfigError(
            f"{argument}: {label!r} cannot be a label; one has letters from a to z, digits, '_', '.' and "
            "'-', and begins with a letter or a digit"
        )
    if not text:
        raise ConfigError(f"{argument}: no encoder after the label; write {label}=runs/NAME/encoder")
    return label, text


def _settings(text: str) -> dict[str, Any]:
    try:
        spec = parse_yaml(text)
    except YAMLError as error:
        raise ConfigError(f"{text}: cannot be read: {one_line(error)}") from error
    problems = encoders.problems(spec if isinstance(spec, dict) else {})
    if problems:
        raise ConfigError(f"{text}: {problems[0].key}: {problems[0].message}")
    return spec


def _entrant(argument: str, label: str, spec: dict[str, Any]) -> Entrant:
    """The encoder of settings; built without memory, so that what it cannot be is said before anything runs.

    Raises:
        ConfigError: See :func:`read_entrants`.
        DataError: The same.
    """
    try:
        with torch.device("meta"):
            image_size = encoders.build(spec).image_size
    except ConfigError as error:
        raise ConfigError(f"{argument}: {error}") from error
    if spec["name"] == "exported":
        place = Path(spec["folder"]).resolve()
        name = place.parent.name if place.name == "encoder" else place.name
        digest = _of_folder(Path(spec["folder"]))
    else:
        name = label or str(spec.get("model_name") or spec["name"])
        contents = {key: digest_of(key, value) or value for key, value in spec.items()}
        digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w.-]", "_", name)
    return Entrant(label or name, name, spec, digest, image_size)


def _of_folder(folder: Path) -> str:
    """SHA-256 of an exported encoder, by which its runs have been named since there are any."""
    digest = hashlib.sha256()
    for path in sorted([folder / CONFIG_FILE, *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
