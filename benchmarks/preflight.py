"""The preflight on two nodes, with each fault planted in turn: is it found, named, and how soon.

    python benchmarks/preflight.py                 # all; root, for network namespaces; some minutes
    python benchmarks/preflight.py --only clock    # those whose name holds a word

Each node is a process with a network, a host name, a ``/dev/shm`` and mounts of its own, two of them joined
by a virtual cable; they share a folder as nodes share a file system. Prints the table of docs/cluster.md, and
ends with 1 if a fault was not found.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.jobs import kill_group, mount_private_memory, write_experiment

_NAMES, _ADDRESSES, _PORT = ("node-a", "node-b"), ("10.77.0.1", "10.77.0.2"), 29500
_PRELOAD = ["benchmarks.preflight", "lcl_composer.preflight.run", "lcl_composer.commands.preflight"]
_PRELOAD += ["composer", "timm", "transformers.models.opt.modeling_opt", "lcl_composer.methods.lcl"]
_PRELOAD += ["lcl_composer.callbacks.summary", "composer.optim", "composer.algorithms"]
#: Seconds after which a preflight has failed at what it is for.
_LIMIT = 150
_WAIT = "8"
Plant = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        name: In the table.
        says: What rank 0, or else the other node, has to say.
        node: Where it is planted.
        plant: What plants it, in the node before its preflight.
        on_disk: What plants it in the job's folder, before any node starts.
        overrides: Settings of that node.
        environment: Variables of that node.
        starts: Nodes that start.
        code: Exit code of rank 0.
    """

    name: str
    says: str
    node: int = 1
    plant: Plant | None = None
    on_disk: Callable[[Path], object] | None = None
    overrides: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    starts: tuple[int, ...] = (0, 1)
    code: int = 1


class Result(NamedTuple):
    """Exit codes and output of the nodes, and the seconds until each had ended."""

    codes: list[int | None]
    outputs: list[str]
    seconds: list[float]


def mount(place: str, options: str) -> None:
    """Lay an empty file system of this node's own over a folder of the job."""
    Path(place).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)


def other_version() -> None:
    """Another transformers on this node."""
    from lcl_composer.preflight import equal

    real = equal.version
    equal.version = lambda name: "4.40.0" if name == "transformers" else real(name)


def other_code() -> None:
    """A drop-in that differs."""
    text = Path("callbacks/record_batches.py").read_text()
    mount("callbacks", "size=1m")
    Path("callbacks/record_batches.py").write_text(text + "\n# changed on one node\n")


def other_gpus() -> None:
    """Two GPUs where the other node has none."""
    import torch

    from lcl_composer.preflight import equal

    torch.cuda.device_count = lambda: 2
    equal._gpu = lambda index: "NVIDIA A100, 40 GB, sm_80"


def small_container() -> None:
    """A limit of memory of half a gigabyte."""
    from lcl_composer.preflight import node

    node._CGROUP = Path(tempfile.mkstemp()[1])
    node._CGROUP.write_text("500000000")


def stale_segments() -> None:
    """What a killed job leaves."""
    Path("/dev/shm/000003_epoch_data").write_bytes(bytes(1 << 20))


def clock_ahead() -> None:
    """An hour."""
    real = time.time
    time.time = lambda: real() + 3600


def few_files() -> None:
    """Two hundred open files at most."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 4096))


def take_port() -> None:
    """Somebody else listens at MASTER_PORT."""
    taken = socket.socket()
    taken.bind(("", _PORT))
    taken.listen()
    globals()["_held"] = taken


def other_interface() -> None:
    """One that leads to no other node, as Docker's does."""
    commands = "link add inner0 type veth peer name inner1\naddress add 5.5.5.5/24 dev inner0\n"
    commands += "link set inner0 up\nlink set inner1 up\n"
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)


def slow_cable() -> None:
    """Two Mbit/s."""
    rate = ["rate", "2mbit", "burst", "32kbit", "latency", "400ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *rate], check=True)


def in_checks(do: Callable[[], Any]) -> Plant:
    """Do something in the midst of the node's checks."""

    def plant() -> None:
        from lcl_composer.preflight import run

        run.CHECKS["memory"] = lambda plan: do()

    return plant


def die() -> None:
    """As the system does to who takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def cut_cable() -> None:
    """And go on."""
    subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
    time.sleep(1000)


def hang() -> None:
    """A check that never comes back, of a node whose checks may take eight seconds."""
    from lcl_composer.preflight import run

    run.NODE_SECONDS = 8.0
    run.CHECKS["disk"] = lambda plan: time.sleep(1000)  # type: ignore[assignment]


def last_shard(folder: Path) -> Path:
    """Of the pages at their remote."""
    place = folder / "remote/pages"
    entry = json.loads((place / "index.json").read_text())["shards"][-1]
    return place / (entry["zip_data"] or entry["raw_data"])["basename"]


def flip(path: Path) -> None:
    """Change the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)


def remote_never_answers() -> None:
    """Whatever is asked of it."""
    from streaming.base.storage.download import LocalDownloader

    LocalDownloader._download_file_impl = lambda *arguments: time.sleep(1000)  # type: ignore[method-assign]


FAULTS = [
    Fault("none", "preflight: ", code=0),
    Fault("one node never starts", "rank 1 (node 1) did not come within 8 s", starts=(0,), code=2),
    Fault("MASTER_PORT is taken", "port 29500 is taken there", node=0, plant=take_port, code=2),
    Fault(
        "MASTER_ADDR is not rank 0's host",
        "could not reach rank 0 at MASTER_ADDR:MASTER_PORT 10.77.0.9:29500",
        environment=(("MASTER_ADDR", "10.77.0.9"),),
        code=2,
    ),
    Fault(
        "MASTER_ADDR is localhost",
        "MASTER_ADDR is localhost and the job has 2 nodes",
        environment=(("MASTER_ADDR", "localhost"),),
        code=2,  # rank 0 waits for it in vain
    ),
    Fault("rank killed in the midst", "came and fell silent", plant=in_checks(die), code=2),
    Fault("network cut in the midst", "came and fell silent", plant=in_checks(cut_cable), code=2),
    Fault("a check hangs", "disk 1 fail did not end within 8 s", plant=hang),
    Fault(
        "the wrong interface",
        "all-reduce, gloo all fail",
        plant=other_interface,
        environment=(("GLOO_SOCKET_IFNAME", "inner0"),),
    ),
    Fault("slow cable", "a slow network", plant=slow_cable, code=0),
    Fault("another transformers", "versions 1 fail transformers is 4.40.0", plant=other_version),
    Fault("another drop-in", "source 1 fail", plant=other_code),
    Fault("another setting", "settings 1 fail optimizer.lr is 0.5", overrides=("optimizer.lr=0.5",)),
    Fault("a wrong setting", "settings 1 fail command line: lrr: unknown key", overrides=("lrr=1",)),
    Fault("other GPUs", "GPUs are equal 1 fail the number of GPUs is 2", plant=other_gpus),
    Fault("too little memory", "memory 1 fail", plant=small_container),
    Fault("/dev/shm of 16 kB", "shared memory 1 fail", plant=lambda: mount("/dev/shm", "size=16k")),
    Fault(
        "stale shared memory", "left by killed jobs 1 warn 1 segments (1.05 MB)", plant=stale_segments, code=0
    ),
    Fault("no disk for checkpoints", "disk 0 fail", node=0, plant=lambda: mount("runs", "size=100k")),
    Fault("no disk for the cache", "disk 1 fail", plant=lambda: mount("cache", "size=16k")),
    Fault("runs/ is read-only", "write access 0 fail", node=0, plant=lambda: mount("runs", "ro")),
    Fault("runs/ is not shared", "write access 1 fail", plant=lambda: mount("runs", "size=1g")),
    Fault("last shard is missing", "shards all fail", on_disk=lambda folder: last_shard(folder).unlink()),
    Fault("last shard is damaged", "shards all fail", on_disk=lambda folder: flip(last_shard(folder))),
    Fault(
        "remote does not answer",
        "shards 1 fail data.train.streams.pages.remote",
        plant=remote_never_answers,
    ),
    Fault("clock an hour ahead", "clocks 1 fail 3600", plant=clock_ahead),
    Fault("200 open files", "open files 1 fail", plant=few_files),
]


@contextmanager
def cable() -> Iterator[None]:
    """Two network namespaces, joined."""

    def ip(command: str, check: bool = True) -> None:
        subprocess.run(["ip", *command.split()], check=check, capture_output=not check)

    for name in _NAMES:
        ip(f"netns del lcl-{name}", check=False)
        ip(f"netns add lcl-{name}")
    try:
        ip(f"link add eth0 netns lcl-{_NAMES[0]} type veth peer name eth0 netns lcl-{_NAMES[1]}")
        for name, address in zip(_NAMES, _ADDRESSES, strict=True):
            ip(f"-n lcl-{name} address add {address}/24 dev eth0")
            ip(f"-n lcl-{name} link set eth0 up")
            ip(f"-n lcl-{name} link set lo up")
        yield
    finally:
        for name in _NAMES:
            ip(f"netns del lcl-{name}", check=False)


def write_hosts(lines: tuple[str, ...]) -> None:
    """Give this node an /etc/hosts of its own."""
    handle, name = tempfile.mkstemp()
    os.write(handle, "\n".join(("127.0.0.1 localhost", *lines, "")).encode())
    os.close(handle)
    subprocess.run(["mount", "--bind", name, "/etc/hosts"], check=True)


def be_node(number: int) -> None:
    """Move this process into the network of a node, with its name and its own mounts."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_network, new_names = 0x40000000, 0x04000000
    with open(f"/var/run/netns/lcl-{_NAMES[number]}") as network:
        name = _NAMES[number].encode()
        if libc.setns(network.fileno(), new_network) or libc.unshare(new_names):
            raise OSError(ctypes.get_errno(), "no namespaces; run it as root")
    libc.sethostname(name, len(name))
    mount_private_memory()
    write_hosts(tuple(f"{a} {n}" for n, a in zip(_NAMES, _ADDRESSES, strict=True)))


def node(number: int, index: int, folder: Path, output: Path) -> None:
    """Run one node of a preflight with a fault."""
    os.setsid()
    log = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    be_node(number)
    fault, world = FAULTS[index], {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    world |= {
        "RANK": str(number),
        "NODE_RANK": str(number),
        "MASTER_ADDR": _NAMES[0],
        "MASTER_PORT": str(_PORT),
    }
    here = fault.node == number
    os.environ.update(world | dict(fault.environment if here else ()), TORCH_CPP_LOG_LEVEL="FATAL")
    if fault.plant and here:
        fault.plant()
    from lcl_composer.commands.preflight import preflight_and_exit

    timeout = [f"data.train.{key}" for key in ("download_timeout=2", "download_retry=0", "num_workers=2")]
    settings = ["callbacks.record_batches.folder=notes", *timeout, *(fault.overrides if here else ())]
    preflight_and_exit(Path("experiment.yaml"), settings, float(_WAIT))


def run(index: int, template: Path) -> Result:
    """Start the nodes of a fault on a copy of the job's folder, and wait for their end."""
    context: Any = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as place, cable():
        folder = shutil.copytree(template, Path(place, "job"))
        moved = (folder / "experiment.yaml").read_text().replace(str(template), str(folder))
        (folder / "experiment.yaml").write_text(moved)
        if on_disk := FAULTS[index].on_disk:
            on_disk(folder)
        outputs = [Path(place, f"node{number}.txt") for number in FAULTS[index].starts]
        begun, processes = time.monotonic(), []
        for number, output in zip(FAULTS[index].starts, outputs, strict=True):
            processes.append(context.Process(target=node, args=(number, index, folder, output)))
            processes[-1].start()
        seconds = [_wait(process, begun) for process in processes]
        codes = [process.exitcode for process in processes]
        for process in processes:
            kill_group(process)
        return Result(codes, [output.read_text() for output in outputs], seconds)


def _wait(process: BaseProcess, begun: float) -> float:
    process.join(max(begun + _LIMIT - time.monotonic(), 0))
    return time.monotonic() - begun


def words(output: str) -> str:
    """Output without the lines of its table, one space between words."""
    return " ".join(output.replace("│", " ").replace("┃", " ").split())


def line_of(fault: Fault, result: Result) -> tuple[str, str]:
    """The line that tells the fault, and the node that printed it; "" if none does."""
    for number, output in zip(fault.starts, result.outputs, strict=True):
        for line in output.splitlines():
            if fault.says in words(line):
                return words(line), f"{number}"
    return "", ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of names of faults")
    parser.add_argument("--show", action="store_true", help="print what the nodes print")
    arguments = parser.parse_args()
    multiprocessing.set_forkserver_preload(_PRELOAD)
    chosen = [
        i for i, f in enumerate(FAULTS) if not arguments.only or any(w in f.name for w in arguments.only)
    ]
    lost = 0
    print("| planted | exit codes | ended after, s | what is printed |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        write_experiment(template := Path(place, "template"))
        for index in chosen:
            fault, result = FAULTS[index], run(index, template)
            line, _ = line_of(fault, result)
            found = bool(line) and result.codes[0] == fault.code
            lost += not found
            codes, seconds = (
                ", ".join(map(str, v)) for v in (result.codes, [f"{s:.0f}" for s in result.seconds])
            )
            print(f"| {fault.name} | {codes} | {seconds} | {line or '**not found**'} |", flush=True)
            if arguments.show or not found:
                print(*result.outputs, sep="\n---\n", file=sys.stderr, flush=True)
    sys.exit(int(lost > 0))


if __name__ == "__main__":
    main()
