"""The rows of ``benchmarks/faults.py``: what breaks, and what shall come of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.faults import Stage, checkpoints, fault, refused
from benchmarks.launched_jobs import Launch, torchrun
from lcl_composer.checkpoint import read_model_state
from lcl_composer.data.document import Document, Text
from lcl_composer.data.writer import DocumentWriter

#: Exit codes: of an error, and of Composer's launcher where a signal ended it.
ERROR, TERMINATED = 1, -signal.SIGTERM
_TINIER = "model.encoder.model_args.embed_dim=16"


def kill_rank(number: int, node: int = 0, by: int = signal.SIGKILL) -> Callable[[Launch], None]:
    """Kill a rank of a node."""
    return lambda launch: launch.members[node].ranks()[number].send_signal(by)


def kill_worker(launch: Launch) -> None:
    """Kill a loader worker of the second rank."""
    children = launch.members[0].ranks()[1].children()
    workers = [child for child in children if child.memory_info().rss > 50 << 20]
    workers[0].kill()


def kill_launcher(launch: Launch) -> None:
    """Kill the launcher alone, and wait until nobody trains any more."""
    ranks = launch.members[0].ranks()
    psutil.Process(launch.members[0].process.pid).kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive, "ranks train on"


def to_all(*signals: int) -> Callable[[Launch], None]:
    """Send signals to all processes, as a terminal or Slurm does, and wait for the ranks."""

    def act(launch: Launch) -> None:
        ranks = launch.members[0].ranks()
        for number in signals:
            os.killpg(launch.members[0].process.pid, number)
            time.sleep(0.05)
        psutil.wait_procs(ranks, timeout=60)

    return act


def to_ranks(number: int) -> Callable[[Launch], None]:
    """Send a signal to the ranks and not to their launcher."""
    return lambda launch: [rank.send_signal(number) for rank in launch.members[0].ranks()] and None


def disk_full(stage: Stage, what: str) -> None:
    """Checkpoints go to a disk that something else fills."""
    place = stage.folder / "disk_full_at_a_checkpoint/runs/tiny/checkpoints"
    filler = place / "filler"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)

    def fill(launch: Launch) -> None:
        free = shutil.disk_usage(place).free
        filler.write_bytes(b"\0" * (free - (100 << 10)))

    try:
        fault(stage, what, fill, "the disk is full", {ERROR}, cure=filler.unlink, batch=3)
    finally:
        subprocess.run(["umount", str(place)], capture_output=True, check=False)


def damage(change: Callable[[Path], None], says: str) -> Callable[[Stage, str], None]:
    """Damage the newest checkpoint of a run that was killed, and see what the next launch says."""

    def row(stage: Stage, what: str) -> None:
        name = "".join(c if c.isalnum() else "_" for c in what)
        launch = stage.launch(name)
        launch.wait_for_batch(5)
        launch.kill()
        newest = max(checkpoints(stage.folder / name).glob("ep*.pt"), key=lambda path: path.stat().st_mtime)
        change(newest)
        start = time.monotonic()
        launch = stage.launch(name)
        codes = launch.wait()
        output = launch.members[0].output
        lines = [line for line in output.splitlines() if says in line] if says else ["(goes on)"]
        bad = [] if lines or not says else [f"did not say {says!r}: {output[-500:]}"]
        bad += stage.compare(name, again=False)
        stage.row(what, time.monotonic() - start, codes, lines[0] if lines else "", bad)

    return row


def of_another_architecture(path: Path) -> None:
    """Give a checkpoint's largest tensor another shape."""
    import torch

    read_model_state(path)  # makes loads safe, and allows what a checkpoint holds
    content = torch.load(path, weights_only=True)
    model = content["state"]["model"]
    name = max(model, key=lambda key: model[key].numel())
    model[name] = model[name][..., :-1].clone()
    torch.save(content, path)


def all_of_another_architecture(stage: Stage, what: str) -> None:
    """A run is launched again with a smaller encoder."""
    stage.launch("architecture", "max_duration=4ba").wait()
    refused(stage, what, "architecture", "another architecture .*set it back, or choose another", _TINIER)


def remote_away(seconds: float | None) -> Callable[[Stage, str], None]:
    """The remote is away when shards are to be fetched, for a while or for good."""

    def row(stage: Stage, what: str) -> None:
        remote, away = stage.folder / "remote", stage.folder / "away"
        name = "".join(c if c.isalnum() else "_" for c in what)
        for part in ("pairs", "pages"):
            (stage.folder / name / "cache" / part).mkdir(parents=True)
            shutil.copy(remote / part / "index.json", stage.folder / name / "cache" / part)
        remote.rename(away)
        try:
            if seconds is None:
                options = ("data.train.download_timeout=20",)
                refused(stage, what, name, "cannot fetch|did not arrive within 20 s", *options, bound=90)
                return
            back = threading.Timer(seconds + 8, lambda: away.rename(remote))
            start = time.monotonic()
            back.start()
            launch = stage.launch(name)
            codes, line = launch.wait(300), launch.members[0].last_line()
            bad = ["it ended"] if any(codes) else stage.compare(name, again=False)
            stage.row(what, time.monotonic() - start, codes, line if bad else "(trains on)", bad)
        finally:
            if away.exists():
                away.rename(remote)

    return row


def shard_damaged(stage: Stage, what: str) -> None:
    """A shard in the cache is overwritten in its middle while the run is down."""
    name = "shard"
    launch = stage.launch(name)
    launch.wait_for_batch(3)
    launch.kill()
    for shard in (stage.folder / name / "cache").rglob("*.mds"):
        size = shard.stat().st_size
        with shard.open("r+b") as file:
            file.seek(size // 3)
            file.write(os.urandom(size // 3))
    start = time.monotonic()
    launch = stage.launch(name)
    codes = launch.wait()
    lines = [line for line in launch.members[0].output.splitlines() if "fetching it again" in line]
    line = lines[0].strip() if lines else ""
    bad = ["it ended"] if any(codes) else stage.compare(name, again=False)
    bad += [] if line else ["not named"]
    stage.row(what, time.monotonic() - start, codes, line, bad)


def two_of_one_name(stage: Stage, what: str) -> None:
    """A second launch while the first trains: it is refused and the first goes on."""
    first = stage.launch("twice", "callbacks.record_batches.pause=1.5")
    first.wait_for_batch(0)
    refused(stage, what, "twice", "is in use by another launch")
    first.wait()
    if bad := stage.compare("twice", again=False):
        stage.row(what, 0, [], "(the first one)", bad)


NAN = '''"""Lose the loss in a batch."""

from composer.core import Callback


class LoseLoss(Callback):
    """Multiply the loss of a batch by NaN."""

    def __init__(self, batch: int):
        self.batch = batch

    def after_loss(self, state, logger):
        if int(state.timestamp.batch) == self.batch:
            state.loss = {name: loss * float("nan") for name, loss in state.loss.items()}
'''


def lost_loss(stage: Stage, what: str) -> None:
    """A loss is NaN; launched again without what makes it so."""
    (stage.folder / "callbacks/lose_loss.py").write_text(NAN)
    refused(
        stage,
        what,
        "nan",
        r"error: .*batch 6: .*loss is nan.*; samples: rank 0: ",
        "callbacks.lose_loss={batch: 5}",
    )
    if bad := stage.compare("nan"):
        stage.row(what, 0, [], "(launched again)", bad)


def without_images(stage: Stage, what: str) -> None:
    """A document a rank and batch, and three of four documents are text alone."""
    with DocumentWriter(stage.folder / "remote/texts", size_limit=1 << 13) as writer:
        for number in range(150):
            text = Text(f"a red circle stands left of the {number % 7} small squares")
            writer.write(Document(f"texts/{number}", "made up", (text,)))
    stream = f"{{remote: {stage.folder}/remote/texts, local: cache/texts}}"
    options = ("global_train_batch_size=2", f"data.train.streams.texts={stream}", "max_duration=60ba")
    start = time.monotonic()
    launch = stage.launch("text", *options, "callbacks.record_batches.pause=0")
    codes, output = launch.wait(), launch.members[0].output
    rows = [line for line in output.splitlines() if "has no" in line]
    bad = [] if codes == [0] and rows else [launch.members[0].last_line()]
    stage.row(what, time.monotonic() - start, codes, rows[0] if rows else "", bad)


def memory_full(stage: Stage, what: str) -> None:
    """A ``/dev/shm`` that is too small for the loader's batches."""
    refused(stage, what, "memory", "/dev/shm is full", nodes=1, shared_memory="256k")
    if bad := stage.compare("memory"):
        stage.row(what, 0, [], "(launched again)", bad)


CLOCK = '''"""Set the clock of this process back."""

import datetime
import time

from composer.core import Callback


class ClockBack(Callback):
    """An hour, for ``time.time`` and ``datetime.now``, from a batch on."""

    def __init__(self, batch: int):
        self.batch = batch

    def batch_start(self, state, logger):
        if int(state.timestamp.batch) != self.batch:
            return
        real, hour = time.time, datetime.timedelta(hours=1)

        class Earlier(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return super().now(tz) - hour

        time.time, datetime.datetime = lambda: real() - 3600, Earlier
'''


def clock_back(stage: Stage, what: str) -> None:
    """The clock that the ranks read goes back in mid-run; the machine's own is left alone."""
    (stage.folder / "callbacks/clock_back.py").write_text(CLOCK)
    start = time.monotonic()
    launch = stage.launch("clock", "callbacks.clock_back={batch: 4}")
    codes, line = launch.wait(), launch.members[0].last_line()
    bad = ["it ended"] if any(codes) else stage.compare("clock", again=False)
    steps = [json.loads(row)["step"] for row in (stage.folder / "clock/runs/tiny/metrics.jsonl").open()]
    bad += [] if steps == sorted(steps) else ["steps go back"]
    stage.row(what, time.monotonic() - start, codes, line if bad else "(trains on)", bad)


def network_cut(stage: Stage, what: str) -> None:
    """The cable of the second node is pulled."""
    names = ["lclfault0", "lclfault1"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "lclv0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "lclv0",
            "netns",
            names[1],
        )
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.99.7.{number + 1}/24", "dev", "lclv0")
            ip("-n", name, "link", "set", "lclv0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        fault(
            stage, what, lambda launch: ip("-n", names[1], "link", "set", "lclv0", "down"),
            "got no answer from another rank within dist_timeout|lost its connection", {ERROR},
            overrides=("dist_timeout=20",), bound=90, nodes=2, networks=names, address="10.99.7.1",
            environment={"GLOO_SOCKET_IFNAME": "lclv0"},
        )  # fmt: skip
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _fault(
    act: Callable[[Launch], None], says: str, codes: set[int], **options
) -> Callable[[Stage, str], None]:
    return lambda stage, what: fault(stage, what, act, says, codes, **options)


_KILLED = r"error: rank 1 \(process \d+\) was killed from outside"
#: Rows by name.
ROWS: dict[str, Callable[[Stage, str], None]] = {
    "kill -9 of a rank": _fault(kill_rank(1), _KILLED, {ERROR}),
    "kill -9 of rank 0": _fault(kill_rank(0), r"error: rank 0 \(process \d+\) was killed", {-9, 247, ERROR}),
    "kill -9 of a rank, torchrun starts it again": _fault(
        kill_rank(1), "Plots: runs/tiny/plots", {0}, launcher=torchrun
    ),
    "kill -9 of a rank of node 1": _fault(
        kill_rank(1, node=1), r"rank 3 \(process \d+\) was killed", {-9, 247, ERROR}, nodes=2
    ),
    "kill -9 of a loader worker": _fault(kill_worker, "a loader process died", {ERROR}),
    "kill -9 of the launcher": _fault(kill_launcher, "stopped by the end of its launcher after batch", {-9}),
    "SIGTERM to all processes": _fault(
        to_all(signal.SIGTERM), "tiny stopped by SIGTERM after batch", {TERMINATED, 143}
    ),
    "SIGUSR1 to the ranks": _fault(to_ranks(signal.SIGUSR1), "tiny stopped by SIGUSR1 after batch", {138}),
    "SIGINT (Ctrl-C)": _fault(to_all(signal.SIGINT), "tiny stopped by SIGINT after batch", {130}),
    "SIGINT twice": _fault(
        to_all(signal.SIGINT, signal.SIGINT), "ended by SIGINT", {130, ERROR, -9, 247}, bound=15
    ),
    "disk full at a checkpoint": disk_full,
    "newest checkpoint truncated": damage(lambda p: os.truncate(p, p.stat().st_size // 2), "passed over"),
    "newest checkpoint empty": damage(lambda p: os.truncate(p, 0), "passed over"),
    "newest checkpoint of another architecture": damage(of_another_architecture, "another architecture"),
    "all checkpoints of another architecture": all_of_another_architecture,
    "checkpoints without their symlink": damage(lambda p: (p.parent / "latest-rank0.pt").unlink(), ""),
    "remote away for a minute": remote_away(60),
    "remote away for good": remote_away(None),
    "shards damaged in the cache": shard_damaged,
    "two jobs of one name": two_of_one_name,
    "loss is NaN": lost_loss,
    "ranks without images for many batches": without_images,
    "clock set back an hour": clock_back,
    "/dev/shm full": memory_full,
    "network of node 1 cut": network_cut,
}
