"""Jobs under the real launchers, Composer's and torchrun, whose ranks are forked instead of started.

What a launcher sees, prints and kills is its own code; only ``subprocess.Popen`` is replaced, by a class that
forks a rank from the launcher's process, in which all is imported, and there runs ``train.py``.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.jobs import PRELOAD, ROOT, free_port, kill_group, mount_private_memory

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class ForkedRank:
    """Stands for ``subprocess.Popen`` in a launcher: ``[python, script, arguments...]``, forked."""

    def __init__(self, args: Sequence[str], env: dict[str, str] | None = None, **options: Any) -> None:
        self.args, self.returncode = args, None
        self.stdout = self.stderr = None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _be_rank([str(a) for a in args], env, options)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._ask(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises TimeoutExpired as Popen does."""
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            time.sleep(0.01)
        return self.returncode or 0

    def _ask(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _be_rank(arguments: list[str], env: dict[str, str] | None, options: dict[str, Any]) -> None:
    """Run the script in this forked process and end it."""
    code = 1
    try:
        import torch

        if options.get("start_new_session"):
            os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            if hasattr(stream := options.get(name), "fileno"):
                os.dup2(stream.fileno(), number)
        if options.get("stderr") == subprocess.STDOUT:
            os.dup2(1, 2)
        os.environ.update(env or {})
        torch.set_num_threads(1)
        sys.argv = arguments[arguments.index(str(ROOT / "train.py")) :]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def composer_launcher(arguments: Sequence[str], ranks: int, nodes: int, node: int, address: str) -> int:
    """Composer's launcher with forked ranks; returns its exit code."""
    from composer.cli import launcher

    launcher.subprocess = _Replaced(launcher.subprocess)  # pyright: ignore[reportAttributeAccessIssue]
    where, port = address.split(":")
    world = ["-n", str(ranks), "--world_size", str(ranks * nodes), "--node_rank", str(node)]
    meeting = ["--master_addr", where, "--master_port", port]
    sys.argv = ["composer", *world, *meeting, str(ROOT / "train.py"), *arguments]
    return launcher.main()


def torchrun(arguments: Sequence[str], ranks: int, nodes: int, node: int, address: str) -> int:
    """torchrun with forked ranks, which it starts again once; returns its exit code."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.run import main

    subprocess_handler.subprocess = _Replaced(subprocess)  # pyright: ignore[reportAttributeAccessIssue]
    where, port = address.split(":")
    world = ["--nproc-per-node", str(ranks), "--nnodes", str(nodes), "--node-rank", str(node)]
    meeting = [
        "--master-addr",
        where,
        "--master-port",
        port,
        "--max-restarts",
        "1",
        "--monitor-interval",
        "0.2",
    ]
    main([*world, *meeting, str(ROOT / "train.py"), *arguments])
    return 0


class _Replaced:
    """A module ``subprocess`` with another Popen."""

    Popen = ForkedRank

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@dataclass
class Node:
    """One node of a launch."""

    folder: Path
    log: Path
    process: Any

    @property
    def output(self) -> str:
        """What a person sees on it so far."""
        return self.log.read_text(errors="replace")

    def last_line(self) -> str:
        """Its last line, once whoever has the last word has said it."""
        deadline = time.monotonic() + 15
        while list((self.folder / "tmp").glob("lcl-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def ranks(self) -> list[psutil.Process]:
        """Its ranks, in their order."""
        children = psutil.Process(self.process.pid).children()
        return sorted((c for c in children if c.status() != psutil.STATUS_ZOMBIE), key=lambda c: c.pid)


@dataclass
class Launch:
    """A launch of an experiment under a launcher.

    Args:
        experiment: The YAML.
        folder: Of the run; the same one goes on with it. Of two nodes each has one, and they share ``runs``.
        overrides: Settings laid over the YAML.
        ranks: A node.
        nodes: Number of nodes.
        launcher: One of the two above.
        networks: A network namespace for each node, and the first's address in it.
        environment: Added to that of each node.
        shared_memory: Size of ``/dev/shm``, such as ``1m``; "": as it is.
    """

    experiment: Path
    folder: Path
    overrides: Sequence[str] = ()
    ranks: int = 2
    nodes: int = 1
    launcher: Callable[..., int] = composer_launcher
    networks: Sequence[str] = ()
    address: str = "127.0.0.1"
    environment: dict[str, str] = field(default_factory=dict)
    shared_memory: str = ""

    def __post_init__(self) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        launches = self.folder / "launches"
        self.notes = launches / f"{len(list(launches.glob('*'))):03}"
        self.notes.mkdir(parents=True)
        self.address = f"{self.address}:{free_port()}"
        self.members: list[Node] = []
        for number in range(self.nodes):
            place = self._place(number)
            log = self.notes / f"node{number}.log"
            log.touch()
            process = context.Process(target=_be_node, args=(self, number, place, log))
            process.start()
            self.members.append(Node(place, log, process))

    def _place(self, number: int) -> Path:
        place = self.folder if self.nodes == 1 else self.folder / f"node{number}"
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        if not (place / "callbacks").exists():
            (place / "callbacks").symlink_to(self.experiment.parent / "callbacks")
        if number and not (place / "runs").exists():
            (self.folder / "node0/runs").mkdir(exist_ok=True)
            (place / "runs").symlink_to(self.folder / "node0/runs")
        return place

    @property
    def settings(self) -> list[str]:
        """The command line after the YAML."""
        return [f"callbacks.record_batches.folder={self.notes}", *self.overrides]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "members"}

    def wait_for_batch(self, batch: int, timeout: float = 180) -> None:
        """Wait until the first rank has come to a batch; raises RuntimeError if it does not."""
        note = self.notes / f"0of{self.ranks * self.nodes}.jsonl"
        deadline = time.monotonic() + timeout
        while not note.exists() or note.read_text().count("\n") <= batch - self._first(note):
            if time.monotonic() > deadline or not all(m.process.is_alive() for m in self.members):
                output = "\n".join(m.output[-3000:] for m in self.members)
                self.kill()
                raise RuntimeError(f"batch {batch} did not come:\n{output}")
            time.sleep(0.01)

    @staticmethod
    def _first(note: Path) -> int:
        found = re.search(r'"batch": (\d+)', note.read_text())
        return int(found[1]) if found else 0

    def wait(self, timeout: float = 240) -> list[int | None]:
        """Exit codes of the nodes, negative for a signal, None of one that did not end in time."""
        deadline = time.monotonic() + timeout
        for member in self.members:
            member.process.join(max(deadline - time.monotonic(), 0.1))
        codes = [member.process.exitcode for member in self.members]
        if None in codes:
            self.kill()
        return codes

    def kill(self) -> None:
        """``kill -9`` all of it."""
        for member in self.members:
            with suppress(psutil.NoSuchProcess):
                for rank in psutil.Process(
                    member.process.pid
                ).children():  # torchrun's have groups of their own
                    rank.kill()
            kill_group(member.process)


def _be_node(launch: Launch, number: int, place: Path, log: Path) -> None:
    """Be the launcher of a node."""
    os.setsid()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for line in (signal.SIGINT, signal.SIGTERM):
        signal.signal(line, signal.SIG_DFL if line == signal.SIGTERM else signal.default_int_handler)
    os.chdir(place)
    if launch.networks:
        _enter_network(launch.networks[number])
    if launch.nodes > 1 or launch.shared_memory:
        mount_private_memory(f"size={launch.shared_memory}" if launch.shared_memory else "")
    os.environ.update(launch.environment, TMPDIR=str(place / "tmp"), PYTHONUNBUFFERED="1")
    tempfile.tempdir = None
    arguments = [str(launch.experiment), *launch.settings]
    sys.exit(launch.launcher(arguments, launch.ranks, launch.nodes, number, launch.address))


def _enter_network(name: str) -> None:
    with Path("/var/run/netns", name).open() as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"network namespace {name}")
