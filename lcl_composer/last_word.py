"""What became of the ranks of a node, and the last word on it: the true cause, whatever launcher there is.

When a rank dies, the others fail too, of the connection that it leaves; which of them is heard first is
chance, one that is killed says nothing, and launchers end with lines of their own. So each rank keeps a
record, in a folder of this launch on this node, of what became of it, and the node's first rank starts this
file as a process of its own, of a few megabytes: it sees which rank was first to fail or to vanish, outlives
the launcher, and prints the cause when all is over. It also ends ranks that outlive their launcher and do not
come to an end. Only the standard library is imported.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

#: What became of a rank. The last three come with a line of text.
RUNNING, ENDED, CUT_SHORT, STOPPED, FAILED, FOLLOWED = (
    "running", "ended", "cut short", "stopped", "failed", "followed",
)  # fmt: skip

#: Seconds that ranks whose launcher is gone have for a batch and a checkpoint.
ORPHANS_END_WITHIN = 300.0
#: Seconds that a launcher has to end after its ranks, before the last word is said without waiting for it.
_LAUNCHER_ENDS_WITHIN = 10.0
_TICK = 0.2


@dataclass(frozen=True)
class Record:
    """What became of a rank.

    Attributes:
        rank: Its number among all.
        pid: Its process.
        born: When that process began, in the kernel's ticks: its number may be used again.
        state: ``running``, ``ended``, ``stopped`` behind a checkpoint, ``cut short`` by a signal without one,
            ``failed`` of itself, or ``followed`` another that did.
        text: Why, in a line; of one that runs, why it will have ended if it is killed from here on.
        at: When, in seconds of the node's monotonic clock.
    """

    rank: int
    pid: int
    born: str
    state: str = RUNNING
    text: str = ""
    at: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return birth_of(self.pid) == self.born


def birth_of(pid: int) -> str:
    """When a process began, in ticks; empty if it has ended, even if nobody has asked for its exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def read_records(folder: Path) -> list[Record]:
    """The records of a node's ranks."""
    records = []
    for path in sorted(folder.glob("rank*.json")):
        with suppress(OSError, ValueError, TypeError):
            records.append(Record(**json.loads(path.read_text())))
    return records


class Rank:
    """This process as a rank: writes its record and reads those of its node.

    Args:
        folder: That of this launch on this node.
        rank: Number of the rank.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank, self.pid = folder, rank, os.getpid()
        self.note(RUNNING)

    def note(self, state: str, text: str = "") -> None:
        """Write the record; a disk that is full must not hide why."""
        pid = os.getpid()
        record = Record(self.rank, pid, birth_of(pid), state, " ".join(text.split()), time.monotonic())
        path = self.folder / f"rank{self.rank}.json"
        with suppress(OSError):
            path.with_suffix(".tmp").write_text(json.dumps(asdict(record)))
            os.replace(path.with_suffix(".tmp"), path)

    def cause_elsewhere(self) -> str:
        """Why another rank of this node failed or vanished first; empty if none has."""
        others = [record for record in read_records(self.folder) if record.rank != self.rank]
        gone = {record.rank for record in others if record.state == RUNNING and not record.alive}
        failed = [record for record in others if record.state == FAILED]
        if failed:
            return told(min(failed, key=lambda record: record.at))
        vanished = [record for record in others if record.rank in gone]
        return killed(vanished) if vanished else ""


_launcher: int | None = None
_rank: Rank | None = None


def launcher() -> int | None:
    """The process that started this one as a rank; None if none did."""
    return _launcher


def begin() -> Rank | None:
    """Make this process known as a rank; None if no launcher started it. Call it before all that takes time.

    The first rank of a node also starts the process that has the last word.
    """
    if "RANK" not in os.environ or not Path("/proc/self/stat").exists():
        return None
    global _launcher, _rank
    _launcher = os.getppid()
    born = birth_of(_launcher)
    folder = Path(tempfile.gettempdir(), f"lcl-{os.getuid()}-{_launcher}-{born}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            return None
        _rank = rank = Rank(folder, int(os.environ["RANK"]))
        if os.environ.get("LOCAL_RANK", "0") == "0":
            subprocess.run(
                [sys.executable, "-I", "-S", __file__, str(folder), str(_launcher), born],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what ends the others at once shall not end it
                check=False,
            )
    except OSError:  # a full disk: the run says so itself
        return None
    return rank


def heard(name: str) -> None:
    """Note that a signal has asked this rank to stop: if it is killed now, that was to be expected."""
    if _rank is not None and _rank.pid == os.getpid():  # not in a loader's process
        _rank.note(
            RUNNING,
            f"ended by {name} before its checkpoint was written: killed by its launcher or the job's "
            "manager, after their time or at a second signal; launched again the run goes on from its newest "
            "checkpoint",
        )


def told(record: Record) -> str:
    """A failure with the rank it befell."""
    return f"rank {record.rank}: {record.text}"


def killed(records: list[Record]) -> str:
    """What is known of ranks that vanished, one or several at once."""
    if all(record.text for record in records):
        return records[0].text
    names = " and ".join(f"{record.rank} (process {record.pid})" for record in records)
    who = f"rank {names} was" if len(records) == 1 else f"ranks {names} were, in one moment,"
    return (
        f"{who} killed from outside: by hand, by the job's manager, or by the kernel for want of memory "
        "(dmesg says so; then lower data.train.num_workers or device_train_microbatch_size)"
    )


def cause_of(records: Iterable[Record], gone: dict[int, float]) -> str:
    """The line that says why a job ended; empty if it came to its end.

    Args:
        records: Of the node's ranks.
        gone: When ranks vanished that had neither failed nor ended.
    """
    of: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.at):
        of.setdefault(record.state, []).append(record)
    if STOPPED in of:
        return of[STOPPED][0].text
    vanished = [record for record in of.get(RUNNING, ()) if record.rank in gone]
    first = min((gone[record.rank] for record in vanished), default=float("inf"))
    if FAILED in of and of[FAILED][0].at <= first:
        return f"error: {told(of[FAILED][0])}"
    if vanished:
        return f"error: {killed([record for record in vanished if gone[record.rank] == first])}"
    for state in (FOLLOWED, CUT_SHORT):
        if state in of:
            return f"error: {of[state][0].text}"
    return ""


class Watch:
    """Follows the ranks of a node until they and their launcher have ended.

    Args:
        folder: Holds their records.
        launcher: Number of the launcher's process, and when it began.
        patience: Seconds after the launcher's end in which ranks have to end.
        say: Takes the last line.
        linger: Seconds after the ranks' end in which the launcher has to end.
    """

    def __init__(
        self,
        folder: Path,
        launcher: tuple[int, str],
        patience: float,
        say: Callable[[str], None],
        linger: float = _LAUNCHER_ENDS_WITHIN,
    ) -> None:
        self.folder, self.launcher, self.patience, self.say = folder, launcher, patience, say
        self.linger = linger
        self.records: list[Record] = []
        self.gone: dict[int, float] = {}

    def run(self) -> None:
        """Return when all is over and said."""
        (launcher, born), self.records = self.launcher, read_records(self.folder)
        both = seen = time.monotonic()  # when launcher and ranks were last seen together, and any rank
        while (any_rank := any(record.alive for record in self.records)) or birth_of(launcher) == born:
            now = time.monotonic()
            seen = now if any_rank else seen
            both = now if birth_of(launcher) == born else both
            if now - both > self.patience:
                self.end_orphans()
                return
            if now - seen > self.linger:
                break
            self.wait()
            self.look()
        self.look()
        if text := cause_of(self.records, self.gone):
            self.say(text)

    def wait(self) -> None:
        """Wait for a tick or the end of a rank: whose end comes first is to be seen."""
        poll, handles = select.poll(), []
        for record in self.records:
            if record.alive:
                with suppress(OSError):
                    handles.append(os.pidfd_open(record.pid))
                    poll.register(handles[-1], select.POLLIN)
        poll.poll(_TICK * 1000)
        for handle in handles:
            os.close(handle)

    def look(self) -> None:
        """Read the records; note who has vanished since."""
        before, now = {record.rank: record.pid for record in self.records}, time.monotonic()
        self.records = read_records(self.folder) or self.records
        for record in self.records:
            if before.get(record.rank, record.pid) != record.pid:  # the launcher has started it again
                self.gone.pop(record.rank, None)
            if record.state == RUNNING and not record.alive:
                self.gone.setdefault(record.rank, now)

    def end_orphans(self) -> None:
        """``kill -9`` ranks that nobody else would ever end, and say so."""
        for record in self.records:
            if record.alive:
                with suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGKILL)
        self.say(
            f"error: the launcher (process {self.launcher[0]}) is gone and its ranks did not end within "
            f"{self.patience:g} s: they hung, and were killed"
        )


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _main(folder: Path, launcher: tuple[int, str]) -> None:
    if os.fork():  # a launcher that kills a rank kills all its children too
        return
    with (folder / "watch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a launcher that starts ranks again has one already
            return
        Watch(folder, launcher, ORPHANS_END_WITHIN, _say).run()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), (int(sys.argv[2]), sys.argv[3]))
