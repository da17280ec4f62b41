"""Whole training jobs of a tiny model on this machine: started, killed, started again, and their batches.

A job is one process a node, which forks its ranks. Nodes are started from a process that has imported all
there is to import, which saves each launch the ten seconds that Composer takes; from there on a rank does
all that ``composer train.py`` does. Of two nodes each has a ``/dev/shm`` of its own, as two machines have.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 8
#: What the process imports that jobs are forked from.
PRELOAD = ["benchmarks.jobs", "lcl_composer.train", "lcl_composer.build", "lcl_composer.data.loader"]
PRELOAD += ["lcl_composer.methods.lcl", "lcl_composer.models.encoder", "lcl_composer.models.language_model"]
PRELOAD += ["lcl_composer.callbacks.summary", "composer", "timm", "transformers.models.opt.modeling_opt"]

#: Id, hash of the tokens and hash of the pixels of each.
Documents = list[tuple[str, str, str]]


@dataclass
class Batch:
    """A batch over all ranks: its documents in the order of their ids, and each rank's losses."""

    epoch: int
    documents: Documents = field(default_factory=list)
    losses: list[dict[str, str]] = field(default_factory=list)


def write_experiment(folder: Path, documents: tuple[int, int] = (29, 22)) -> Path:
    """Write two small sets of documents, ``pairs`` and ``pages``, and the YAML of a run that mixes them."""
    from lcl_composer.data.tokenizer import train_bpe
    from lcl_composer.data.writer import DocumentWriter
    from lcl_composer.synthetic.shapes import ShapesGenerator

    pairs = ShapesGenerator(documents[0], image_size=24, seed=1, max_images=1, floating=True)
    pages = ShapesGenerator(documents[1], image_size=24, seed=2, min_images=2, max_groups=1)
    for name, generator in (("pairs", pairs), ("pages", pages)):
        with DocumentWriter(folder / "remote" / name, size_limit=1 << 13) as writer:
            for document in generator.documents():
                writer.write(type(document)(f"{name}/{document.id}", document.source, document.segments))
    train_bpe(pages.texts(), 300, folder / "tokenizer.json")
    (folder / "callbacks").mkdir()
    shutil.copy(ROOT / "benchmarks/record_batches.py", folder / "callbacks")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(_experiment(folder)))
    return path


def _experiment(folder: Path) -> dict[str, Any]:
    streams = {
        name: {"remote": str(folder / "remote" / name), "local": f"cache/{name}"}
        for name in ("pairs", "pages")
    }
    tiny = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.1}
    return {
        "extends": [
            str(ROOT / "yamls" / name) for name in ("base.yaml", "optim/lcl.yaml", "model/tiny.yaml")
        ],
        "run_name": "tiny",
        "model": {
            "encoder": {"image_size": 16, "model_args": tiny},
            "pooler": {"num_heads": 2},
            "language_model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        },
        "tokenizer": {"name": "bpe", "path": str(folder / "tokenizer.json")},
        "data": {"max_tokens": 96, "train": {"streams": streams, "shuffle": True, "num_workers": 0}},
        "scheduler": {"t_warmup": "2ba"},
        "callbacks": {"speed_monitor": None, "lr_monitor": None, "record_batches": {"folder": "???"}},
        "loggers": {"tensorboard": None},
        "global_train_batch_size": BATCH_SIZE,
        "max_duration": "3ep",
        "save_interval": "2ba",
        "progress_bar": False,
    }


class Job:
    """One launch of the experiment.

    Args:
        experiment: The YAML of ``write_experiment``.
        folder: Where the run's files and its notes go; the same one goes on with the run.
        ranks: Ranks a node.
        overrides: Settings laid over the YAML.
        nodes: Machines to play, each with caches, ``/dev/shm`` and folder of its own (needs root if > 1).
    """

    def __init__(self, experiment: Path, folder: Path, ranks: int, *overrides: str, nodes: int = 1) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        if str(ROOT) not in sys.path:
            sys.path.insert(0, str(ROOT))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        launches = folder / "launches"
        self.notes = launches / f"{len(list(launches.glob('*'))):03}"
        self.notes.mkdir(parents=True)
        self.ranks = ranks * nodes
        settings = [f"callbacks.record_batches.folder={self.notes}", *overrides]
        world = {
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_PORT": str(free_port()),
        }
        self.processes: list[BaseProcess] = []
        for node in range(nodes):
            place = folder / f"node{node}" if nodes > 1 else folder
            place.mkdir(exist_ok=True)
            if not (place / "callbacks").exists():
                (place / "callbacks").symlink_to(experiment.parent / "callbacks")
            arguments = (experiment, settings, place, world | {"NODE_RANK": str(node)}, nodes > 1)
            self.processes.append(context.Process(target=_node, args=arguments))
            self.processes[-1].start()

    def wait(self, timeout: float = 300) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: If a node failed or took too long; holds the end of its output.
        """
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        codes = [process.exitcode for process in self.processes]
        if any(codes) or None in codes:
            self.kill()
            output = "\n".join(path.read_text()[-3000:] for path in sorted(self.notes.glob("*.log")))
            raise RuntimeError(f"exit codes {codes}:\n{output}")

    def kill(self) -> None:
        """``kill -9`` every process of the job at once: nodes, ranks and workers."""
        for process in self.processes:
            kill_group(process)

    def kill_at(self, batch: int, timeout: float = 120) -> int:
        """Kill it as soon as the first rank has come to a batch; returns the last batch that was noted."""
        deadline = time.monotonic() + timeout
        first = self.notes / f"0of{self.ranks}.jsonl"
        while self.processes[0].is_alive() and (not first.exists() or batch > _last_batch(first)):
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"batch {batch} did not come within {timeout} s")
            time.sleep(0.005)
        if not self.processes[0].is_alive():
            self.wait()
        self.kill()
        return _last_batch(first)


def read_batches(notes: Path) -> dict[int, Batch]:
    """Return the batches that one launch trained on and every rank noted."""
    files = sorted(notes.glob("*.jsonl"), key=lambda path: int(path.name.split("of")[0]))
    batches: dict[int, Batch] = {}
    for path in files:
        for row in _rows(path):
            batch = batches.setdefault(row["batch"], Batch(row["epoch"]))
            batch.documents = sorted([*batch.documents, *map(tuple, row["documents"])])
            batch.losses.append(row["losses"])
    return {number: batch for number, batch in batches.items() if len(batch.losses) == len(files)}


def stitch(folder: Path) -> tuple[dict[int, Batch], list[int]]:
    """Put the launches of a run together.

    Returns:
        Each batch as it was trained on last, and the batches that two launches trained on differently.
    """
    whole: dict[int, Batch] = {}
    different: list[int] = []
    for launch in sorted((folder / "launches").iterdir()):
        for number, batch in read_batches(launch).items():
            if number in whole and whole[number].documents != batch.documents:
                different.append(number)
            whole[number] = batch
    return whole, different


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file whose writer may have been killed."""
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _last_batch(path: Path) -> int:
    rows = _rows(path)
    return rows[-1]["batch"] if rows else -1


def _node(experiment: Path, settings: list[str], place: Path, world: dict[str, str], private: bool) -> None:
    """One node of a job: forks its ranks and ends with the worst of their exit codes."""
    os.setsid()
    log = os.open(settings[0].split("=")[1] + f"/node{world['NODE_RANK']}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(place)
    if private:
        mount_private_memory()
        os.environ["TMPDIR"] = str(place)
        tempfile.tempdir = None
    _note_downloads(place / "downloads.txt")
    launch_ranks(world, partial(_train, experiment, settings))


def _train(experiment: Path, settings: list[str]) -> None:
    from lcl_composer.launched import run

    sys.exit(run([str(experiment), *settings]))


def kill_group(process: BaseProcess) -> None:
    """``kill -9`` a process that leads a group, with the group; returns when all are dead.

    What it started dies a little later than it does, and the run's lock with that.
    """
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid or 0, signal.SIGKILL)
    except (ProcessLookupError, psutil.NoSuchProcess):
        children = []
    process.join()
    while not all(map(_is_dead, children)):
        time.sleep(0.005)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # nobody may ever ask for its exit code
    except psutil.NoSuchProcess:
        return True


def launch_ranks(world: dict[str, str], work: Callable[[], None]) -> None:
    """Do as Composer's launcher does: start this node's ranks, and end them all with the first that fails.

    Args:
        world: The launcher's environment variables; those of a rank are added.
        work: What each rank does.
    """
    os.environ.update(world, MASTER_ADDR="127.0.0.1", PYTHONUNBUFFERED="1")
    children = [_fork_rank(work, rank) for rank in range(int(world["LOCAL_WORLD_SIZE"]))]
    codes = []
    while len(codes) < len(children) and not any(codes):
        codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
    if any(codes):
        os.killpg(0, signal.SIGKILL)


def _fork_rank(work: Callable[[], None], local_rank: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from multiprocessing import resource_tracker

        import torch

        # A rank of its own launcher has a tracker of its own, which dies with it.
        tracker: Any = resource_tracker._resource_tracker  # pyright: ignore[reportAttributeAccessIssue]
        tracker._fd = tracker._pid = None
        ranks, node = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["NODE_RANK"])
        os.environ.update(RANK=str(node * ranks + local_rank), LOCAL_RANK=str(local_rank))
        torch.set_num_threads(1)
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        if not code and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def mount_private_memory(options: str = "") -> None:
    """Give this process a mount namespace with an empty ``/dev/shm``.

    Args:
        options: Of tmpfs, such as ``size=64k``.

    Raises:
        OSError: If that is not permitted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x00020000, (1 << 18) | (1 << 14)  # CLONE_NEWNS; MS_PRIVATE | MS_REC
    for failed in (
        libc.unshare(new_namespace),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options.encode()),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "no private /dev/shm")


def _note_downloads(path: Path) -> None:
    """Append the name of every file that Streaming copies from a remote to ``path``."""
    from streaming.base.storage.download import LocalDownloader

    download = LocalDownloader._download_file_impl

    def note(self: LocalDownloader, remote: str, local: str, timeout: float) -> None:
        with path.open("a") as file:
            file.write(f"{remote}\n")
        download(self, remote, local, timeout)

    LocalDownloader._download_file_impl = note


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
