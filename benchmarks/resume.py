"""Is a run the same run, however it is dealt out and however often it is killed? Prints a table.

    python benchmarks/resume.py [--kills 20] [--rows ranks kills changes ends nodes]

A tiny model trains on two mixed streams with dropout on. Compared are the global batches (ids, hashes of
tokens and of pixels) and, on the same number of ranks, the losses bit for bit: over ranks and workers, after
``kill -9`` of the whole job at random steps, after changes of the number of ranks, at epoch ends, and on two
nodes with private caches and shared memory (as root). Needs two CPU cores and under ten minutes; exits with 1
if a row is not as it should be.
"""

from __future__ import annotations

import argparse
import multiprocessing.util
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.jobs import (  # noqa: E402
    BATCH_SIZE,
    Batch,
    Job,
    mount_private_memory,
    read_batches,
    stitch,
    write_experiment,
)

DOCUMENTS = (29, 22)
_ROWS = ["ranks", "kills", "changes", "ends", "nodes"]
_PER_EPOCH = sum(DOCUMENTS) // BATCH_SIZE
#: Seconds a step is stretched to, so that a kill finds the step it is meant for.
_PAUSE = "callbacks.record_batches.pause=0.05"

Whole = dict[int, Batch]


class Table:
    """Rows of what was done and what came out; remembers whether all was well."""

    def __init__(self) -> None:
        self.good = True
        self._start = time.monotonic()

    def row(self, what: str, result: str, problems: list[str]) -> None:
        """Print a row; any problem makes it, and the table, a failure."""
        self.good &= not problems
        verdict = "; ".join(problems) or "as it should be"
        print(f"| {what} | {result} | {verdict} | {time.monotonic() - self._start:.0f} s |", flush=True)


def main() -> int:
    """Run the comparison and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=20, help="times the job is killed (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which it is killed")
    parser.add_argument("--rows", nargs="+", choices=_ROWS, default=_ROWS, help="what to do (default: all)")
    arguments = parser.parse_args()
    try:
        mount_private_memory()  # other jobs on this machine shall not be in the way
        isolated = True
    except OSError:
        isolated = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        multiprocessing.util.get_temp_dir()  # its own, which outlives this folder
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
        Path(tempfile.tempdir).mkdir()
        table = prove(folder, arguments.kills, random.Random(arguments.seed), arguments.rows, isolated)
    return 0 if table.good else 1


def prove(folder: Path, kills: int, rng: random.Random, rows: list[str], isolated: bool) -> Table:
    """Run the rows that are asked for."""
    experiment, table = write_experiment(folder, DOCUMENTS), Table()
    print("| run | result | | done after |\n| --- | --- | --- | --- |")
    steps = max(3 * _PER_EPOCH, kills * 3)
    reference = train(experiment, folder / "reference", 1, f"max_duration={steps}ba")
    table.row("1 rank, 0 workers", f"{len(reference)} batches", epochs_problems(reference, steps))
    if "ranks" in rows:
        ranks_and_workers(table, experiment, folder, reference)
    if "kills" in rows:
        killed(table, experiment, folder, reference, sorted(rng.sample(range(1, steps - 2), kills)))
    if "changes" in rows:
        changed_ranks(table, experiment, folder, reference, rng)
    if "ends" in rows:
        epoch_ends(table, experiment, folder, reference)
    if "nodes" in rows and isolated:
        two_nodes(table, experiment, folder, reference)
    elif "nodes" in rows:
        table.row("2 nodes of 2 ranks", "left out: a private /dev/shm is not permitted here", [])
    return table


def ranks_and_workers(table: Table, experiment: Path, folder: Path, reference: Whole) -> None:
    """An epoch and a bit more, dealt out in eight other ways."""
    steps = _PER_EPOCH + 2
    for ranks, workers in [(r, w) for r in (1, 2, 4) for w in (0, 2, 4)][1:]:
        name = f"{ranks} rank{'s'[: ranks > 1]}, {workers} workers"
        options = (f"max_duration={steps}ba", f"data.train.num_workers={workers}")
        found = train(experiment, folder / name, ranks, *options)
        table.row(name, f"{len(found)} batches", differences(found, reference, steps))


def killed(table: Table, experiment: Path, folder: Path, reference: Whole, steps: list[int]) -> None:
    """Kill a job of two ranks with two workers each at each step, and let it go on."""
    options = (f"max_duration={len(reference)}ba", "data.train.num_workers=2")
    whole = train(experiment, folder / "two whole", 2, *options)
    table.row("2 ranks, not killed", f"{len(whole)} batches", differences(whole, reference, len(reference)))
    place, at, left = folder / "killed", [], []
    for step in steps:
        at.append(Job(experiment, place, 2, *options, _PAUSE).kill_at(step))
        left.append(leftovers())
    train(experiment, place, 2, *options)
    found, different = stitch(place)
    problems = differences(found, reference, len(reference)) + loss_differences(found, whole)
    problems += [f"batches {different} were others when trained again"] if different else []
    table.row(f"2 ranks, kill -9 {len(steps)} times", f"at batches {', '.join(map(str, at))}", problems)
    print_leftovers(table, left, leftovers())


def print_leftovers(table: Table, left: list[int], after: int) -> None:
    """What a killed job leaves is cleared by the next; one that ends leaves Streaming's two lock files."""
    grows = len(left) > 1 and max(left[len(left) // 2 :]) > 1.5 * max(left[: len(left) // 2])
    problems = ["they pile up"] if grows else []
    problems += [f"{after} are left in the end"] if after > 2 else []
    table.row(
        "leftovers in shared memory and lock files", f"{max(left)} after a kill, {after} in the end", problems
    )


def changed_ranks(table: Table, experiment: Path, folder: Path, reference: Whole, rng: random.Random) -> None:
    """Kill, and go on with another number of ranks."""
    place, steps = folder / "changed", 2 * _PER_EPOCH + 2
    for ranks, first in ((2, 1), (1, _PER_EPOCH - 2), (4, _PER_EPOCH + 3)):
        Job(experiment, place, ranks, "max_duration=3ep", _PAUSE).kill_at(first + rng.randrange(3))
    train(experiment, place, 2, f"max_duration={steps}ba")
    found, different = stitch(place)
    problems = differences(found, reference, steps)
    problems += [f"batches {different} were others when trained again"] if different else []
    table.row("killed, ranks 2 -> 1 -> 4 -> 2", f"{len(found)} batches", problems)


def epoch_ends(table: Table, experiment: Path, folder: Path, reference: Whole) -> None:
    """Go on from the end of an epoch, twice, with checkpoints at epoch ends only."""
    place, steps = folder / "ends", len(reference)
    settings = (f"max_duration={steps}ba", "save_interval=1ep")
    for end in (1, 2):
        Job(experiment, place, 1, *settings, _PAUSE).kill_at(end * _PER_EPOCH)
    train(experiment, place, 1, *settings)
    found, different = stitch(place)
    starts = [min(read_batches(launch)) for launch in sorted((place / "launches").iterdir())]
    problems = differences(found, reference, steps) + loss_differences(found, reference)
    problems += [f"batches {different} were others when trained again"] if different else []
    problems += [f"launches began at batches {starts}"] if starts != [0, _PER_EPOCH, 2 * _PER_EPOCH] else []
    table.row("1 rank, killed at epoch ends", f"{len(found)} batches", problems)


def two_nodes(table: Table, experiment: Path, folder: Path, reference: Whole) -> None:
    """Two nodes of two ranks; each fetches what it needs once."""
    place, steps = folder / "nodes", _PER_EPOCH + 2
    job = Job(experiment, place, 2, f"max_duration={steps}ba", "data.train.num_workers=2", nodes=2)
    job.wait()
    found, _ = stitch(place)
    downloads = [Counter((place / f"node{n}/downloads.txt").read_text().split("\n")[:-1]) for n in (0, 1)]
    problems = differences(found, reference, steps)
    problems += [
        f"{name} was fetched {n} times" for counts in downloads for name, n in counts.items() if n > 1
    ]
    result = f"{len(found)} batches, {' + '.join(str(counts.total()) for counts in downloads)} files fetched"
    table.row("2 nodes of 2 ranks, 2 workers", result, problems)


def train(experiment: Path, place: Path, ranks: int, *overrides: str) -> Whole:
    """Run a job to its end and return its batches, those of earlier launches included."""
    place.mkdir(exist_ok=True)
    Job(experiment, place, ranks, *overrides).wait()
    return stitch(place)[0]


def differences(found: Whole, reference: Whole, steps: int) -> list[str]:
    """What is wrong with the global batches of a run of ``steps`` batches."""
    problems = [f"batches {sorted(found)} instead of {steps}"] if sorted(found) != list(range(steps)) else []
    wrong = [n for n in found if n in reference and found[n].documents != reference[n].documents]
    return problems + ([f"batches {wrong} are others"] if wrong else [])


def loss_differences(found: Whole, reference: Whole) -> list[str]:
    """Which losses are not the same to the bit."""
    wrong = [n for n in found if n in reference and found[n].losses != reference[n].losses]
    return [f"losses of batches {wrong} differ"] if wrong else []


def epochs_problems(batches: Whole, steps: int) -> list[str]:
    """Whether an epoch holds a document twice, or lacks more than fill no batch, or repeats another epoch."""
    problems = [] if sorted(batches) == list(range(steps)) else [f"batches {sorted(batches)}"]
    orders = []
    for epoch in range(steps // _PER_EPOCH):
        rows = [batches[epoch * _PER_EPOCH + i].documents for i in range(_PER_EPOCH)]
        ids = [row[0] for documents in rows for row in documents]
        if len(set(ids)) != len(ids) or len(ids) != sum(DOCUMENTS) // BATCH_SIZE * BATCH_SIZE:
            problems.append(f"epoch {epoch} has {len(ids)} documents, {len(set(ids))} different ones")
        orders.append(ids)
    if len({tuple(ids) for ids in orders}) < len(orders):
        problems.append("epochs have the same order")
    return problems


def leftovers() -> int:
    """Segments and lock files of Streaming that lie about."""
    lying = [path for path in Path("/dev/shm").iterdir() if path.name[:6].isdigit()]
    return len(lying) + len(list(Path(tempfile.gettempdir()).glob("*_filelock")))


if __name__ == "__main__":
    sys.exit(main())
