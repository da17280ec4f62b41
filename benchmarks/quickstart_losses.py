"""The quickstart's losses on a card beside the CPU's: the same run twice or three times in one command.

    python benchmarks/quickstart_losses.py
    python benchmarks/quickstart_losses.py --dry-run      # without a GPU, on a few documents: both on the CPU

All runs begin from the same weights and take the same documents in the same order. The first loss agrees to
rounding; what comes later drifts apart as any two machines' do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lcl_composer.report.metrics_file import read_metrics  # noqa: E402


def experiment(folder: Path, batches: int, documents: int) -> Path:
    """Write the quickstart without its measurements, with its data in a folder."""
    data = str(folder / "data")
    changes = {
        "extends": [str(ROOT / "yamls/quickstart.yaml")],
        "run_name": "losses",
        "tokenizer": {"path": f"{data}/tokenizer.json"},
        "data": {"train": {"local": f"{data}/train", "generate": {"documents": documents}}, "eval": None},
        "evaluation": None,
        "callbacks": None,
        "loggers": None,
        "max_duration": f"{batches}ba",
        "progress_bar": False,
    }
    path = folder / "losses.yaml"
    path.write_text(yaml.safe_dump(changes))
    return path


def losses(path: Path, name: str, precision: str, on_cpu: bool) -> list[float]:
    """Train, and return the total loss of each batch.

    Raises:
        SystemExit: If the run fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})
    command = [sys.executable, str(ROOT / "train.py"), str(path), f"run_name={name}"]
    done = subprocess.run(
        [*command, f"precision={precision}"],
        cwd=path.parent,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    rows = read_metrics(path.parent / "runs" / name / "metrics.jsonl")
    return [row["loss/train/total"] for row in rows if "loss/train/total" in row]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--documents", type=int, default=2048)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    runs = {"CPU, fp32": ("fp32", True), "GPU, fp32": ("fp32", False), "GPU, amp_bf16": ("amp_bf16", False)}
    if options.dry_run:
        runs = {"CPU, fp32": ("fp32", True), "CPU again": ("fp32", True)}
    with tempfile.TemporaryDirectory() as folder:
        path = experiment(Path(folder), options.batches, options.documents)
        found = {
            name: losses(path, f"run{number}", precision, on_cpu)
            for number, (name, (precision, on_cpu)) in enumerate(runs.items())
        }
    print(f"| batch | {' | '.join(f'{name}, loss' for name in runs)} |\n|{'---|' * (1 + len(runs))}")
    for batch in sorted({1, 2, 8, options.batches // 4, options.batches // 2, options.batches}):
        if 1 <= batch <= options.batches:
            print(f"| {batch} | {' | '.join(f'{values[batch - 1]:.4f}' for values in found.values())} |")


if __name__ == "__main__":
    main()
