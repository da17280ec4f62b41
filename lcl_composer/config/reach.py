"""What a YAML reaches beyond its own settings: to be read before one from elsewhere is trained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcl_composer.config.compose import ComposedConfig
from lcl_composer.config.schema import RunConfig
from lcl_composer.registry import callbacks, methods

#: Parameters of a model's components that name a model of the Hugging Face Hub, a file or a folder.
_PRETRAINED = ("pretrained", "weights", "folder", "path", "model")
#: Those of callbacks and evaluations that name a folder of images.
_IMAGES = ("train", "val", "images")
#: Evaluations whose images are made where the documents are, and the parameter that names a folder of them.
MADE_IMAGES = {"probe": "train", "zero_shot": "images"}
#: Variables that say where a tracker sends to; both have a default or a setting.
_TRACKERS = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_BASE_URL"}
#: What the callback ``notify`` does, and the variable that it has it from.
_NOTIFY = {"runs the command in": "LCL_NOTIFY_COMMAND", "posts to the address in": "LCL_NOTIFY_WEBHOOK"}


def reach(composed: ComposedConfig) -> list[tuple[str, str]]:
    """What the run reads of the environment and runs, where it writes, what it fetches, and who is told.

    Returns:
        What it does, and to what.
    """
    run = composed.run
    rows = [("reads the variable", _variable(name, keys)) for name, keys in composed.variables.items()]
    rows += [("runs the code in", file) for file in _drop_ins(run)]
    rows += [("writes into", place) for place in dict.fromkeys(_written(run))]
    rows += [("fetches or reads", place) for place in dict.fromkeys(_fetched(run))]
    rows += [("sends metrics to", place) for place in _trackers(run)]
    if "notify" in run.callbacks:
        rows += [(what, f"{_state(name)}, at its end") for what, name in _NOTIFY.items()]
    return rows


def _state(name: str) -> str:
    return f"{name} ({'set' if name in os.environ else 'not set'})"


def _variable(name: str, keys: list[str]) -> str:
    return f"{_state(name)}, for {', '.join(dict.fromkeys(keys))}"


def _trackers(run: RunConfig) -> Iterator[str]:
    for name, variable in _TRACKERS.items():
        if name in run.loggers:
            yield f"{name}: {run.loggers[name].get('tracking_uri') or f'the server in {_state(variable)}'}"


def _drop_ins(run: RunConfig) -> Iterator[str]:
    named = [(callbacks, name) for name in run.callbacks] + [(methods, run.method.name)]
    for table, name in named:
        if table.dropins and (file := table.dropins.find(name)):
            yield str(file)


def _streams(run: RunConfig) -> Iterator[tuple[str, str | None, bool]]:
    """Folder and remote of each set of shards, and whether they are generated."""
    for stream in (run.data.train, run.data.eval):
        if stream is not None and stream.local is not None:
            yield stream.local, stream.remote, stream.generate is not None
        for source in (stream.streams or {}).values() if stream is not None else ():
            yield source.local, source.remote, False


def _written(run: RunConfig) -> Iterator[str]:
    yield f"runs/{run.run_name}"
    if not run.save_folder.startswith(f"runs/{run.run_name}/"):
        yield run.save_folder
    yield from (local for local, remote, made in _streams(run) if remote or made)
    yield from (spec["folder"] for _, spec in _observers(run) if spec.get("folder"))
    yield from (spec["log_dir"] for spec in run.loggers.values() if spec.get("log_dir"))
    if run.data.train.generate is not None:
        if run.tokenizer.name == "bpe":
            yield run.tokenizer.spec()["path"]
        named = ((run.evaluation.get(name), key) for name, key in MADE_IMAGES.items())
        yield from (str(Path(spec[key]).parent) for spec, key in named if spec)


def _observers(run: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for table in (run.algorithms, run.callbacks, run.evaluation):
        yield from table.items()


def _fetched(run: RunConfig) -> Iterator[str]:
    yield from (remote for _, remote, _ in _streams(run) if remote)
    if run.load_path:
        yield run.load_path
    model = run.model
    parts = [run.tokenizer, model.encoder, model.language_model, model.target_encoder]
    for spec in (part.spec() for part in parts if part is not None):
        for key in _PRETRAINED:
            if spec.get(key) and not isinstance(spec[key], dict):
                yield str(spec.get("model_name") if spec[key] is True else spec[key])
    for _, spec in _observers(run):
        yield from (spec[key] for key in _IMAGES if isinstance(spec.get(key), str))
