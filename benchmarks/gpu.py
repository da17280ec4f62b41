"""All that is to be measured on a GPU, in one command and one table.

    python benchmarks/gpu.py                               # on a GPU; ten minutes at most
    python benchmarks/gpu.py --dry-run                     # on a CPU: every step at a tiny size, no timing
    python benchmarks/gpu.py --only attention "linear CE"  # some of the steps

A step is one of the other benchmarks in a process of its own, with a limit of time; one that fails or takes
too long stops nothing. What they print goes to ``--folder``; their Markdown tables become the rows of one
table, which names card, versions and date. A dry run shows that each step works and says "not measured" for
its figures.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]


class Step(NamedTuple):
    """One benchmark: its arguments on a GPU and on a CPU, and the seconds it may take."""

    name: str
    script: str
    arguments: str
    dry: str
    limit: int


class Result(NamedTuple):
    """What a step came to: how it ended, and what it printed."""

    status: str
    output: str


def kernel(name: str, operation: str, shape: str, limit: int) -> Step:
    """A fused loss against its contenders."""
    tiny = f"--device cpu --op {operation} --shape 64 32 {99 if operation == 'linear_ce' else 64} --rounds 1"
    return Step(name, "kernels.py", f"--op {operation} --shape {shape} --rounds 10", tiny, limit)


def recipe(name: str, file: str, limit: int, more: str = "") -> Step:
    """Whole training steps of a recipe."""
    arguments = f"--recipe {file} {more}"
    return Step(name, "recipe_steps.py", arguments, f"{arguments} --dry-run --rounds 1", limit)


#: In the order of what is missed most where the time is short; together under ten minutes.
STEPS = [
    Step("packing", "packing.py", "", "--tokens 1024", 15),
    Step("attention", "attention.py", "", "--device cpu --tokens 512 --rounds 1", 55),
    recipe("ViT-B/16 steps", "vit_b16_laion_mmc4", 60),
    kernel("linear CE", "linear_ce", "16384 768 49411", 50),
    kernel("InfoNCE", "info_nce", "32768 768 32768", 45),
    recipe("ViT-B/32 steps", "vit_b32_mmc4", 55),
    recipe("ViT-L/14 steps", "vit_l14_laion_mmc4", 65),
    Step("quickstart", "quickstart_losses.py", "", "--dry-run --batches 2 --documents 96", 70),
    Step(
        "GradCache",
        "gradcache.py",
        "--batches 64 256 --steps 2",
        "--size tiny --batches 8 --micro 4 --steps 1 --whole-up-to 8",
        60,
    ),
    kernel("sigmoid", "sigmoid", "32768 768 32768", 40),
    recipe("ViT-B/16 compiled", "vit_b16_laion_mmc4", 60, "--beside compiled"),
]
#: How many times longer a step may take in a dry run, where a CPU does all of it.
DRY_PATIENCE = 4


def run(step: Step, dry_run: bool, folder: Path) -> Result:
    """Run a step within its limit; its output also goes to a file of its name."""
    command = [sys.executable, str(ROOT / "benchmarks" / step.script)]
    command += (step.dry if dry_run else step.arguments).split()
    limit = step.limit * (DRY_PATIENCE if dry_run else 1)
    try:
        done = subprocess.run(
            command, cwd=ROOT, timeout=limit, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        status, output = "ok" if done.returncode == 0 else f"exit status {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as stopped:
        partial = stopped.stdout or b""
        output = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
        status = f"stopped after {limit} s"
    (folder / f"{re.sub('[ /]', '_', step.name)}.log").write_text(output)
    return Result(status, output)


def tables(output: str) -> Iterator[tuple[list[str], list[str]]]:
    """Header and cells of each row of the Markdown tables in a text."""
    header: list[str] | None = None
    for line in output.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if header is None:
            header = cells
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            yield header, cells


def is_figure(heading: str) -> bool:
    """Whether a column holds what a machine took, and not what was done."""
    return bool(re.search(r"\b(ms|s a step|MB|MiB|GB|images/s|tokens/s|MFU|share|loss)\b", heading))


def rows(step: Step, result: Result, dry_run: bool) -> list[str]:
    """The step's rows of the one table."""
    made = []
    for header, cells in tables(result.output):
        named = list(zip(header, cells, strict=False))
        case = ", ".join(f"{h} {c}".strip() for h, c in named if c and not is_figure(h))
        figures = "; ".join(f"{h} {c}" for h, c in named if c and is_figure(h))
        made.append(f"| {step.name} | {case} | {'not measured' if dry_run else figures} |")
    if result.status != "ok" or not made:
        made.append(f"| {step.name} | {result.status} | not measured |")
    return made


def heading(dry_run: bool) -> str:
    """Card, versions and date."""
    card = "no GPU, a dry run: nothing was measured" if dry_run else torch.cuda.get_device_name()
    return f"{card}; torch {torch.__version__}, CUDA {torch.version.cuda}; {datetime.date.today():%d %B %Y}"


def main() -> int:
    """Run the steps and print the table; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpu")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device here; --dry-run tries every step on the CPU")
    options.folder.mkdir(parents=True, exist_ok=True)
    table, failed = [heading(options.dry_run), "", "| step | case | figures |", "|---|---|---|"], False
    print("\n".join(table), flush=True)
    for step in STEPS:
        if options.only and step.name not in options.only:
            continue
        result = run(step, options.dry_run, options.folder)
        failed |= result.status != "ok"
        made = rows(step, result, options.dry_run)
        print("\n".join(made), flush=True)
        table += made
    (options.folder / "table.md").write_text("\n".join(table) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
