"""Carries out a Dockerfile in chroots: where there is no Docker, each RUN line can still be run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

#: Of the machine's own: how it reaches package registries.
_NETWORK = ("PIP_", "UV_", "SSL_", "REQUESTS_", "http_", "https_", "no_", "HTTP_", "HTTPS_", "NO_")
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
_ENTER = (
    'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/dev/shm" && '
    'exec chroot ${USERSPEC:+--userspec="$USERSPEC"} "$0" "$@"'
)


class Instruction(NamedTuple):
    """An instruction of a Dockerfile, its continued lines joined."""

    name: str
    value: str


@dataclass
class Stage:
    """What a stage has come to."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""


def instructions(text: str) -> Iterator[Instruction]:
    """Yield the instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, value = line.strip().partition(" ")
        yield Instruction(name, " ".join(value.split()))


def base_of(text: str) -> str:
    """The image that the first stage begins with."""
    return next(i.value.split()[0] for i in instructions(text) if i.name == "FROM")


def build(text: str, context: Path, base: Path, folder: Path) -> Stage:
    """Carry out a Dockerfile.

    Args:
        text: Of the Dockerfile.
        context: What COPY copies from.
        base: A root file system in place of the base image; not changed.
        folder: For those of the stages.

    Returns:
        The last stage.

    Raises:
        subprocess.CalledProcessError: If an instruction fails.
    """
    stages: dict[str, Stage] = {}
    stage = Stage(base)
    for number, (name, value) in enumerate(instructions(text)):
        if name == "FROM":
            image, *alias = value.split(" AS ")
            before = stages.get(image, Stage(base))
            root = folder / f"stage{number}"
            subprocess.run(["cp", "-a", "--reflink=auto", before.root, root], check=True)
            stage = Stage(root, dict(before.environment), before.workdir, before.user)
            stages[(alias or [str(number)])[0]] = stage
        elif name == "RUN":
            run(stage, ["/bin/sh", "-c", value])
        else:
            _settle(stage, name, value, context, stages)
    return stage


def run(stage: Stage, command: list[str]) -> str:
    """Run a command in a stage, as its user and in its working directory; returns what it prints."""
    own = {k: v for k, v in os.environ.items() if k.startswith(_NETWORK)}
    named = [value for value in own.values() if value.startswith("/") and Path(value).is_file()]
    for path in map(Path, (*_NETWORK_FILES, *named)):
        inside = stage.root / path.relative_to("/")
        if path.exists():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.unlink(missing_ok=True)
            shutil.copy(path, inside)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    settings = {"PATH": path, "HOME": "/root", **own, **stage.environment}
    spec = {"USERSPEC": stage.user} if stage.user else {}
    inside = ["env", "-i", *(f"{k}={v}" for k, v in settings.items()), "sh", "-c", 'cd "$0" && exec "$@"']
    enter = ["unshare", "--mount", "--fork", "bash", "-c", _ENTER, str(stage.root)]
    done = subprocess.run(
        [*enter, *inside, stage.workdir, *command],
        env=os.environ | spec,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout[-4000:])
    return done.stdout


def _settle(stage: Stage, name: str, value: str, context: Path, stages: dict[str, Stage]) -> None:
    """Carry out an instruction that runs nothing."""
    if name == "ENV":
        for word in shlex.split(value):
            key, _, text = word.partition("=")
            before = {
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            } | stage.environment
            stage.environment[key] = text.replace("$PATH", before["PATH"])
    elif name == "WORKDIR":
        stage.workdir = value
        (stage.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif name == "USER":
        stage.user = value
    elif name == "COPY":
        words = value.split()
        source = context
        if words[0].startswith("--from="):
            source = stages[words.pop(0).removeprefix("--from=")].root
        target = stage.root / stage.workdir.lstrip("/") / words[-1]
        if words[-1].startswith("/"):
            target = stage.root / words[-1].lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        for word in words[:-1]:
            path = source / word.lstrip("/")
            subprocess.run(["cp", "-a", f"{path}/." if path.is_dir() else path, target], check=True)
    elif name not in ("CMD", "HEALTHCHECK"):
        raise ValueError(f"{name}: not known here")
