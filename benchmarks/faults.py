"""What a job says and does when something breaks, and whether it loses anything. Prints a table.

    python benchmarks/faults.py [--only WORD ...] [--kills 0] [--minutes 60]

Whole jobs of a tiny model under Composer's launcher and torchrun, of one node and of two with two ranks each.
After each fault: seconds until the job has ended, its exit code, the last line that a person sees; then it is
launched again with the same command, as a job's manager does, and held, bit for bit, to a run that nobody
disturbed: final weights, and each batch trained on once. ``--kills N`` kills one run N times at random
moments. As root the nodes have networks and shared memory of their own. Exits with 1 if a row is not as it
should be.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.jobs import mount_private_memory, stitch, write_experiment  # noqa: E402
from benchmarks.launched_jobs import Launch  # noqa: E402
from lcl_composer.checkpoint import read_model_state  # noqa: E402
from lcl_composer.errors import LCLError  # noqa: E402

BATCHES = 8
SETTINGS = (f"max_duration={BATCHES}ba", "data.train.num_workers=1", "callbacks.record_batches.pause=0.2")
#: Seconds within which a job has to end after a fault, unless a row says otherwise.
BOUND = 45.0


@dataclass
class Stage:
    """Where the jobs run.

    Attributes:
        folder: For all of it.
        experiment: The YAML.
        whole: Folders of undisturbed runs by their number of nodes.
    """

    folder: Path
    experiment: Path
    whole: dict[int, Path] = field(default_factory=dict)
    good: bool = True

    def launch(self, name: str, *overrides: str, **options) -> Launch:
        """Launch the experiment, or launch it again, in a folder of that name."""
        (self.folder / name).mkdir(exist_ok=True)
        return Launch(self.experiment, self.folder / name, [*SETTINGS, *overrides], **options)

    def row(self, what: str, seconds: float, codes: Sequence[int | None], line: str, bad: list[str]) -> None:
        """Print a row; whatever is bad makes the table a failure."""
        self.good &= not bad
        shown = " ".join(str(code) for code in codes)
        line = line.replace(str(self.folder), "").replace("|", "\\|")
        line = line if len(line) < 170 else line[:167] + "..."
        print(f"| {what} | {seconds:.0f} s | {shown} | {line} | {'; '.join(bad) or 'yes'} |", flush=True)

    def compare(
        self,
        name: str,
        nodes: int = 1,
        overrides: tuple[str, ...] = (),
        again: bool = True,
        noted: bool = True,
    ) -> list[str]:
        """Launch a run once more, to its end, and say how it differs from the undisturbed one."""
        if again:
            codes = self.launch(name, *overrides, nodes=nodes).wait()
            if any(code != 0 for code in codes):
                return [f"launched again it ended with {codes}"]
        if nodes not in self.whole:
            self.whole[nodes] = self.folder / f"whole{nodes}"
            launch = self.launch(self.whole[nodes].name, nodes=nodes)
            if any(launch.wait()):
                raise RuntimeError(f"the undisturbed run failed:\n{launch.members[0].output[-3000:]}")
        return differences(self.folder / name, self.whole[nodes], noted)


def differences(found: Path, whole: Path, noted: bool = True) -> list[str]:
    """How a run differs from an undisturbed one.

    Weights are compared bit for bit; batches unless a launcher started ranks again, whose notes go to one
    file with the first's.
    """
    ours, theirs = weights(found), weights(whole)
    lost = [name for name, tensor in theirs.items() if not torch.equal(tensor, ours[name])]
    far = max((float((theirs[n] - ours[n]).abs().max()) for n in lost), default=0.0)
    bad = []
    if lost:
        bad.append(f"{len(lost)} of {len(theirs)} weights differ, by up to {far:.1g}")
    if not noted:
        return bad
    batches, different = stitch(found)
    expected, _ = stitch(whole)
    bad += [f"batches {sorted(batches)}"] if sorted(batches) != sorted(expected) else []
    bad += [f"batches {different} were others when trained again"] if different else []
    wrong = [n for n in batches if n in expected and batches[n].documents != expected[n].documents]
    return bad + ([f"batches {wrong} are others"] if wrong else [])


def checkpoints(folder: Path) -> Path:
    """The folder of a run's checkpoints, also of one on two nodes."""
    return next(p for p in (folder / "node0", folder) if p.is_dir()) / "runs/tiny/checkpoints"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights."""
    return read_model_state(checkpoints(folder) / f"ep1-ba{BATCHES}-rank0.pt")


def fault(
    stage: Stage,
    what: str,
    act: Callable[[Launch], None],
    says: str,
    codes: set[int],
    *,
    overrides: tuple[str, ...] = (),
    bound: float = BOUND,
    batch: int = 4,
    cure: Callable[[], None] = lambda: None,
    **options,
) -> None:
    """Disturb a run in mid-batch, look at its end, launch it again.

    Args:
        stage: Where.
        what: The row's name.
        act: Disturbs it.
        says: Pattern of the last line on every node.
        codes: Exit codes of launchers that are as they should be.
        overrides: Settings of this row.
        bound: Seconds within which it has to end.
        batch: Before which it is disturbed.
        cure: Called before it is launched again.
        options: Of ``Launch``.
    """
    name = re.sub(r"\W+", "_", what)
    launch = stage.launch(name, *overrides, **options)
    try:
        launch.wait_for_batch(batch)
        start = time.monotonic()
        act(launch)
        found = launch.wait(bound + 60)
        lines = [member.last_line() for member in launch.members]
        seconds = time.monotonic() - start
    finally:
        launch.kill()
    bad = [f"said {line!r}" for line in lines if not re.search(says, line)]
    bad += [f"took {seconds:.0f} s"] if seconds > bound else []
    bad += [f"exit code {code}" for code in found if code not in codes]
    cure()
    bad += stage.compare(name, options.get("nodes", 1), overrides, again=any(found), noted=any(found))
    stage.row(what, seconds, found, lines[0], bad)


def refused(
    stage: Stage, what: str, name: str, says: str, *overrides: str, bound: float = BOUND, **options
) -> None:
    """Launch something that must end with a line by itself."""
    start = time.monotonic()
    launch = stage.launch(name, *overrides, **options)
    codes = launch.wait(bound + 60)
    line = launch.members[0].last_line()
    seconds = time.monotonic() - start
    bad = [] if re.search(says, line) else [f"said {line!r}"]
    bad += [f"exit code {code}" for code in codes if code in (0, None)]
    bad += [f"took {seconds:.0f} s"] if seconds > bound else []
    stage.row(what, seconds, codes, line, bad)


def random_kills(stage: Stage, count: int, minutes: float, rng: random.Random) -> None:
    """Kill one run at random moments: while it starts, while it trains, while it writes a checkpoint."""
    name, steps = "random_kills", 6 * count  # a launch comes to four
    overrides = (f"max_duration={steps}ba", "save_interval=1ba")
    start, at = time.monotonic(), []
    while len(at) < count and time.monotonic() - start < 60 * minutes:
        launch = stage.launch(name, *overrides, "callbacks.record_batches.pause=0.1")
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0.5, 6))
        else:
            with suppress(RuntimeError):  # none is left, or it broke, which the end will show
                launch.wait_for_batch(0)
            time.sleep(rng.uniform(0, 2.5))
        if not launch.members[0].process.is_alive():
            break
        launch.kill()
        at.append(max(stitch(stage.folder / name)[0], default=-1))
    codes: list[int | None] = []
    for place in (name, "random_whole"):
        codes += stage.launch(place, *overrides, "callbacks.record_batches.pause=0").wait(900)
    batches, different = stitch(stage.folder / name)
    expected, _ = stitch(stage.folder / "random_whole")
    bad = [f"exit codes {codes}"] if any(codes) else []
    bad += [f"batches {different} were others when trained again"] if different else []
    bad += ["batches are missing"] if sorted(batches) != list(range(steps)) else []
    bad += ["documents differ"] if any(batches[n].documents != expected[n].documents for n in batches) else []
    bad += ["losses differ"] if any(batches[n].losses != expected[n].losses for n in batches) else []
    line = f"{len(at)} kills in {steps} batches; the last ones came in batches {at[-5:]}"
    stage.row(f"kill -9 of all at {len(at)} random moments", time.monotonic() - start, codes[:1], line, bad)


def main() -> int:
    """Run the rows that are asked for and return the exit code."""
    from benchmarks.fault_rows import ROWS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these words")
    parser.add_argument("--kills", type=int, default=0, help="kill one run so many times at random moments")
    parser.add_argument("--minutes", type=float, default=60, help="stop killing after (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of these moments")
    arguments = parser.parse_args()
    with suppress(OSError):
        mount_private_memory()  # other jobs on this machine shall not be in the way
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        stage = Stage(folder, write_experiment(folder))
        print("| fault | ended after | exit code | last line | as it should be |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        for what, row in ROWS.items():
            if any(word in what for word in arguments.only):
                try:
                    row(stage, what)
                except (RuntimeError, OSError, LCLError, psutil.Error, subprocess.SubprocessError) as error:
                    stage.row(what, 0, [], str(error)[-1500:], ["could not be done"])
        if arguments.kills:
            random_kills(stage, arguments.kills, arguments.minutes, random.Random(arguments.seed))
    return 0 if stage.good else 1


if __name__ == "__main__":
    sys.exit(main())
