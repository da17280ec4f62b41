"""The model card of an export: what it was trained on, how far, how well, and how to use it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lcl_composer.export.taken import Taken
from lcl_composer.json_data import read_mapping
from lcl_composer.links import leads_out

#: The library that the Hub names beside a model.
_LIBRARIES = {"timm": "timm", "hf": "transformers", "open_clip": "open_clip", "onnx": "onnx"}
#: Parts of ``summary.json`` that are no measurement.
_FACTS = ("losses", "features")


def write_card(taken: Taken, folder: Path, *, format: str, license: str, usage: str, command: str) -> None:
    """Write ``README.md``.

    Args:
        taken: What was exported.
        folder: Where to.
        format: The export's format.
        license: Of the weights.
        usage: Lines of code that load it.
        command: That made it.
    """
    front = {"license": license, "pipeline_tag": "image-feature-extraction", "tags": ["lcl-composer"]}
    if format in _LIBRARIES:
        front["library_name"] = _LIBRARIES[format]
    name = taken.settings.get("run_name") or taken.source.name
    sections = {
        "Use": [f"```python\n{usage}\n```"],
        "Preprocessing": list(_preprocessing(taken)),
        "Training": list(_training(taken)),
        "Measured": list(_measured(taken)),
        "Made by": [
            f"```bash\n{command}\n```",
            f"from `{taken.source}` by LCL-Composer.",
            *_trained_by(taken),
        ],
    }
    text = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n{_opening(taken, license)}\n"
    for title, lines in sections.items():
        if lines:
            text += f"\n## {title}\n\n" + "\n".join(lines) + "\n"
    (folder / "README.md").write_text(text)


def _opening(taken: Taken, license: str) -> str:
    about = taken.encoder.description
    parameters = sum(p.numel() for p in taken.encoder.parameters())
    by = f", pre-trained by the method `{taken.method}`" if taken.method else ""
    return (
        f"A vision encoder ({about['encoder']}, {parameters / 1e6:,.1f}M parameters{by}; "
        f"{'the average of its weights (EMA)' if taken.weights == 'ema' else 'trained weights'}): "
        f"{about['tokens_per_image']} x {about['width']} {about['features']}. Licence of the weights: "
        f"{license}."
    )


def _preprocessing(taken: Taken) -> Iterator[str]:
    about = taken.encoder.description
    yield f"- size: {about['image_size']} x {about['image_size']} RGB ({about['resize']})"
    yield f"- pixels in 0..1, mean {about['mean']}, standard deviation {about['std']}"


def _training(taken: Taken) -> Iterator[str]:
    if not taken.settings:
        return
    for name, place in _data(taken.settings["data"]["train"]):
        yield f"- data: {name} `{place}`"
    if taken.progress is not None:
        yield f"- documents seen: {taken.progress.documents:,} in {taken.progress.batches:,} batches"
        if taken.progress.images is not None:
            yield f"- images seen: {taken.progress.images:,}"
    yield f"- settings: {_settings_line(taken.settings)}"


def _data(train: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The sets of documents: what each is called, and where it lies."""
    streams = train.get("streams") or {"documents": train}
    for name, stream in streams.items():
        generated = (stream.get("generate") or {}).get("name")
        place = stream.get("remote") or stream.get("local")
        yield (f"generated {generated}" if generated else name), str(place)


def _settings_line(settings: Mapping[str, Any]) -> str:
    optimizer = settings["optimizer"]
    rate = f", learning rate {optimizer['lr']}" if "lr" in optimizer else ""
    return (
        f"{settings['max_duration']}, {settings['global_train_batch_size']} documents a batch, "
        f"{optimizer['name']}{rate}, seed {settings['seed']}"
    )


def _measured(taken: Taken) -> Iterator[str]:
    """Numbers of the run's ``summary.json``, if it is that of the batch that was exported."""
    summary = _read(taken.run, "summary.json")
    at = taken.progress.batches if taken.progress is not None else summary.get("batches")
    if not summary or summary.get("batches") != at:
        return
    yield "| | |"
    yield "| --- | --- |"
    for part, result in summary.items():
        for key, value in _numbers(result) if isinstance(result, dict) and part not in _FACTS else ():
            yield f"| {part}: {key} | {value:.4g} |"
    for name, ends in (summary.get("losses") or {}).items():
        if isinstance(ends.get("end"), float):
            yield f"| {name} loss at the end of training | {ends['end']:.4g} |"


def _numbers(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by name, those of mappings inside as ``outer/inner``."""
    for key, value in result.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def _trained_by(taken: Taken) -> Iterator[str]:
    """The command, the commit and the packages that trained it, where the run wrote them down."""
    facts = _read(taken.run, "environment.json")
    commit = (facts.get("git") or {}).get("commit")
    if command := facts.get("command"):
        yield f"\nTrained by\n\n```bash\n{shlex.join(command)}\n```"
    if packages := {k: v for k, v in (facts.get("packages") or {}).items() if v}:
        yield "\nTrained with " + ", ".join(f"{name} {version}" for name, version in packages.items()) + "."
    if commit:
        yield f"Commit of LCL-Composer: {commit}."


def _read(run: Path | None, name: str) -> dict[str, Any]:
    if run is None or leads_out(run / name, run):
        return {}
    return read_mapping(run / name)
