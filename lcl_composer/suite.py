"""Several encoders through all tasks of a folder: each pair a training of its own, then one file of results.

A task is a YAML, a run of it lies in ``runs/SUITE-TASK-ENCODER-DIGEST-sSEED``: an encoder with other weights
is another run. A run that is finished is not launched again, one that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from yaml import YAMLError

from lcl_composer.build import run_of
from lcl_composer.config import ComposedConfig, compose
from lcl_composer.config.core_schema import parse_yaml
from lcl_composer.errors import ConfigError, DataError, LCLError, one_line
from lcl_composer.json_data import load_json
from lcl_composer.links import refuse_links
from lcl_composer.registry import encoders
from lcl_composer.resume import Change, changes

#: Exit codes above this are of a run that was asked to stop.
_SIGNALLED = 128

#: Characters of an encoder's digest in the name of a run.
_DIGEST = 8

#: Settings that a finished run need not share with what is asked for: they change no number, or, as the
#: encoder's place, stand for what the digest in the run's name says.
_ANY = (
    r"run_name|save_\w+|autoresume|progress_bar|log_to_console|dist_timeout|loggers\..*|evaluation\..*|"
    r"data\.\w+\.(num_workers|predownload|cache_limit|download_\w+|validate_hash)|model\.encoder\.folder"
)


@dataclass(frozen=True)
class Entrant:
    """An encoder that is evaluated.

    Attributes:
        label: Its column; encoders of one label are one kind, such as seeds of a recipe, and are averaged.
        name: In the names of its runs.
        spec: What ``model.encoder`` becomes.
        digest: SHA-256 of its files, or of the settings where it has none.
        image_size: Side of its images in pixels, where the folder or the settings say so.
    """

    label: str
    name: str
    spec: dict[str, Any]
    digest: str
    image_size: int | None = None


@dataclass
class Job:
    """A task for an encoder: one run.

    Attributes:
        suite: Name of the folder of tasks.
        task: Its YAML.
        entrant: The encoder.
        seed: Seed of weights, draws and order; None: the YAML's.
        settings: ``a.b=c`` laid over the YAML.
        failure: Why it came to nothing, in a line; "" where it did not fail.
    """

    suite: str
    task: Path
    entrant: Entrant
    seed: int | None = None
    settings: Sequence[str] = ()
    failure: str = field(default="", compare=False)

    @property
    def _own_encoder(self) -> dict[str, Any]:
        """The encoder that the YAML itself names; nothing where it cannot be read without another."""
        try:
            return compose(self.task, self.settings).run.model.encoder.spec()
        except ConfigError:
            return {}

    @cached_property
    def overrides(self) -> list[str]:
        """What is laid over the YAML, the run's name apart."""
        laid = [f"model.encoder={json.dumps(_instead(self._own_encoder, self.entrant.spec))}"]
        if self.entrant.image_size is not None:
            laid.append(f"data.image_size={self.entrant.image_size}")
        if self.seed is not None:
            laid += [f"seed={self.seed}", f"data.train.shuffle_seed={self.seed}"]
        return [*laid, *self.settings]

    @cached_property
    def run_name(self) -> str:
        """Name of the run; reads the YAML for its seed."""
        seed = compose(self.task, self.overrides).run.seed if self.seed is None else self.seed
        digest = self.entrant.digest[:_DIGEST]
        return f"{self.suite}-{self.task.stem}-{self.entrant.name}-{digest}-s{seed}"

    @cached_property
    def composed(self) -> ComposedConfig:
        """The settings; raises ConfigError."""
        return compose(self.task, [*self.overrides, f"run_name={self.run_name}"])

    @property
    def title(self) -> str:
        """What it is, for a person."""
        return f"{self.task.stem} of {self.entrant.label}"


def _instead(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What, laid over the settings of a component of the same name, leaves those of ``now`` alone."""
    if before.get("name") != now.get("name"):
        return now
    both = {key: _instead(before[key], now[key]) for key in now if _are_mappings(before.get(key), now[key])}
    return {**{key: None for key in before if key not in now}, **now, **both}


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def read_entrants(arguments: Sequence[str]) -> list[Entrant]:
    """The encoders that are named: ``FOLDER`` or, as in ``model.encoder``, ``{name: ..., ...}``.

    ``LABEL=`` may stand before either.

    Raises:
        ConfigError: If one cannot be ``model.encoder``, is named twice, or two share a label unasked.
        DataError: If a folder is no exported encoder.
    """
    found: list[Entrant] = []
    given: dict[str, bool] = {}
    for argument in arguments:
        label, text = _split_label(argument)
        entrant = _of_settings(label, text) if text.startswith("{") else _of_folder(label, Path(text))
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
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=(.+)", argument, re.DOTALL)
    return (match[1], match[2]) if match else ("", argument)


def _of_folder(label: str, folder: Path) -> Entrant:
    if not (folder / "config.json").is_file():
        inside = folder / "encoder"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise DataError(f"{folder}: no exported encoder (no config.json in it){hint}")
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    refuse_links(folder, files)
    try:
        image_size = load_json((folder / "config.json").read_text())["encoder"]["image_size"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder}: damaged or not an exported encoder: {one_line(error)}") from error
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    place = folder.resolve()
    name = place.parent.name if place.name == "encoder" else place.name
    name = re.sub(r"[^\w.-]", "_", name)
    spec = {"name": "exported", "folder": str(folder)}
    return Entrant(label or name, name, spec, digest.hexdigest(), image_size)


def _of_settings(label: str, text: str) -> Entrant:
    try:
        spec = parse_yaml(text)
    except YAMLError as error:
        raise ConfigError(f"{text}: cannot be read: {one_line(error)}") from error
    problems = encoders.problems(spec if isinstance(spec, dict) else {})
    if problems:
        raise ConfigError(f"{text}: {problems[0].key}: {problems[0].message}")
    name = re.sub(r"[^\w.-]", "_", label or str(spec.get("model_name") or spec["name"]))
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return Entrant(label or name, name, spec, digest, spec.get("image_size"))


def plan(
    entrants: Sequence[Entrant], suite: Path, seeds: Sequence[int] = (), settings: Sequence[str] = ()
) -> list[Job]:
    """A job for each task, encoder and seed, task by task.

    Args:
        entrants: The encoders.
        suite: A folder, whose YAMLs are the tasks, or one YAML of such a folder.
        seeds: Seeds to train each task with; none: each YAML's own.
        settings: ``a.b=c`` for all tasks.

    Raises:
        ConfigError: If it is missing, or holds no YAML.
    """
    if not suite.exists():
        raise ConfigError(f"--suite {suite}: no such folder or YAML; give one such as yamls/transfer/tiny")
    tasks = sorted(suite.glob("*.yaml")) if suite.is_dir() else [suite]
    if not tasks:
        raise ConfigError(f"--suite {suite}: holds no YAML; give one such as yamls/transfer/tiny")
    chosen: Sequence[int | None] = seeds or [None]
    name = re.sub(r"[^\w.-]", "_", tasks[0].parent.resolve().name)
    return [Job(name, task, e, seed, tuple(settings)) for task in tasks for e in entrants for seed in chosen]


def run_jobs(jobs: Sequence[Job], ranks: int = 1) -> None:
    """Run them one after the other; the others go on where one fails.

    Args:
        jobs: Whose ``failure`` is filled in.
        ranks: Processes of each training.

    Raises:
        SystemExit: A run was asked to stop, and stopped.
    """
    for number, job in enumerate(jobs, 1):
        where = f"[{number}/{len(jobs)}] {job.title}"
        try:
            if is_finished(job):
                print(f"{where}: finished before, in runs/{job.run_name}", flush=True)
                continue
            print(f"{where}: runs/{job.run_name}", flush=True)
            code, last = _launch(job, ranks)
        except LCLError as error:
            code, last = 2, one_line(error)
        if code > _SIGNALLED or code < 0:
            print(f"{where}: stopped; the same command goes on from there", flush=True)
            raise SystemExit(code if code > 0 else _SIGNALLED - code)
        if code:
            job.failure = last.removeprefix("error: ") or f"exit code {code}"
            print(f"{where}: failed: {job.failure}", flush=True)


def is_finished(job: Job) -> bool:
    """Whether the run of a job has come to its end and was measured as is asked for.

    Raises:
        DataError: If it is finished, but was trained with other settings.
    """
    run = run_of(job.composed.run)
    try:
        summary = json.loads((run.folder / "summary.json").read_text())
        before = parse_yaml((run.folder / "config.yaml").read_text())
    except (OSError, ValueError, YAMLError):
        return False
    if not run.finished(summary.get("batches", -1), job.composed.run.evaluation):
        return False
    now = job.composed.run.model_dump(mode="json")
    if other := [change for change in changes(before, now) if not re.fullmatch(_ANY, change.key)]:
        raise DataError(
            f"{run.folder} was trained with {_listed(other)}; remove it to train anew, or set that back"
        )
    return True


def _listed(other: Sequence[Change], most: int = 3) -> str:
    shown = [f"{change.key} {change.before} (now {change.now})" for change in other[:most]]
    return ", ".join(shown) + (f" and {len(other) - most} more" if len(other) > most else "")


def command(job: Job, ranks: int = 1) -> list[str]:
    """The command line of a job's training."""
    arguments = ["train", str(job.task), *job.overrides, f"run_name={job.run_name}"]
    if ranks == 1:
        return [sys.executable, "-m", "lcl_composer", *arguments]
    launcher = Path(sys.executable).parent / "composer"
    return [str(launcher), "-n", str(ranks), "-m", "lcl_composer", *arguments]


def _launch(job: Job, ranks: int) -> tuple[int, str]:
    """Train in processes of its own, its output passed on; exit code and the last line that says why."""
    process = subprocess.Popen(
        command(job, ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    last = error = ""
    assert process.stdout is not None
    with _passing_on_sigterm(process):
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
            error = line.strip() if line.startswith("error: ") else error
        return process.wait(), error or last


@contextmanager
def _passing_on_sigterm(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ask the training to stop where this process is asked to; outside the main thread there is no asking."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:  # interrupted: the run writes nothing half if it is let end
            process.wait()
