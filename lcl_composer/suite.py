"""Several encoders through all tasks of a folder: each pair a training of its own, then one file of results.

A task is a YAML, a run of it lies in ``runs/SUITE-TASK-ENCODER-DIGEST-sSEED``: an encoder with other weights
is another run. A run that is finished is not launched again, one that was cut off goes on.
"""

from __future__ import annotations

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
from lcl_composer.entrants import Entrant
from lcl_composer.errors import ConfigError, DataError, LCLError, one_line
from lcl_composer.inputs import digests_of
from lcl_composer.resume import Change, changes

#: Exit codes above this are of a run that was asked to stop.
_SIGNALLED = 128

#: Characters of an encoder's digest in the name of a run.
_DIGEST = 8

#: Settings that a finished run need not share with what is asked for: they change no number, or, as the
#: encoder's place, stand for what the digest in the run's name says.
_ANY = (
    r"run_name|save_\w+|autoresume|progress_bar|log_to_console|dist_timeout|loggers\..*|evaluation\..*|"
    r"data\.\w+\.(num_workers|predownload|cache_limit|download_\w+|validate_hash)|"
    r"model\.encoder\.(folder|weights|model|pretrained)"
)


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
        DataError: If it is finished, but with other settings, or on other files than lie there now.
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
    run.check_inputs(job.composed.run.evaluation, digests_of(now))
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
