"""The fused losses against float64, then against other implementations in time and memory.

    python benchmarks/kernels.py                     # on a GPU if there is one, else the CPU twins
    python benchmarks/kernels.py --op linear_ce --dtype float32 --markdown table.md

Needs torch and triton and this folder, nothing else; cut-cross-entropy, liger-kernel and inf-cl take part
where they are installed (extra ``bench``). Contenders alternate, so that a machine that slows down slows all
of them. Exits with status 1 when an error against float64 is above its bound. With ``--dtype float32`` TF32
products are allowed on a GPU, the precision of Inf-CL.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders import contenders, ours
from lcl_composer.kernels import info_nce, linear_cross_entropy, sigmoid_loss

#: (rows, D, columns) timed by default.
SHAPES = {
    "cuda": {
        "linear_ce": [(16_384, 512, 49_411), (16_384, 768, 49_411), (16_384, 1024, 49_411),
                      (65_536, 768, 49_411)],
        "info_nce": [(8_192, 768, 8_192), (32_768, 768, 32_768)],
        "sigmoid": [(32_768, 768, 32_768)],
    },
    "cpu": {
        "linear_ce": [(4_096, 512, 49_411)],
        "info_nce": [(8_192, 512, 8_192)],
        "sigmoid": [(8_192, 512, 8_192)],
    },
}  # fmt: skip
#: Relative norms of the errors against float64 that pass: of the loss, of the gradients.
BOUNDS = {"bfloat16": (1e-5, 3e-3), "float16": (1e-5, 1e-3), "float32": (1e-5, 1e-5), "tf32": (1e-4, 2e-3)}
#: Goals of ours: (milliseconds, megabytes) on an H100; ratios to plain (time, memory) on a CPU.
GOALS = {
    ("cuda", "linear_ce", (16_384, 768, 49_411)): (6.5, 400.0),
    ("cuda", "info_nce", (32_768, 768, 32_768)): (12.7, None),
    ("cpu", "linear_ce", (4_096, 512, 49_411)): (0.85, 0.10),
    ("cpu", "info_nce", (8_192, 512, 8_192)): (0.85, 0.15),
}

Call = Callable[[], object]


class Row(NamedTuple):
    """One contender's medians."""

    name: str
    forward_ms: float
    both_ms: float
    extra_mb: float


def make_inputs(op: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """The op's inputs, floats as leaves. Losses are at the level of a model in training, not at chance."""
    generator = torch.Generator(device).manual_seed(0)
    rows, dim, columns = shape

    def normal(count: int) -> Tensor:
        return torch.randn(count, dim, generator=generator, device=device)

    if op == "linear_ce":
        targets = torch.randint(0, columns, (rows,), generator=generator, device=device)
        weight = normal(columns)
        hidden = (normal(rows) + 0.5 * weight[targets]) / dim**0.5
        return [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets]
    images = normal(rows)
    contexts = 0.1 * images + normal(columns)
    normalised = [torch.nn.functional.normalize(x, dim=1).to(dtype) for x in (images, contexts)]
    features = [x.requires_grad_() for x in normalised]
    scalars = [100.0] if op == "info_nce" else [10.0, -10.0]
    return features + [torch.tensor(x, device=device, requires_grad=True) for x in scalars]


def run_both(call: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Loss and gradients."""
    loss = call(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, [x for x in inputs if x.requires_grad])]


def errors(op: str, call: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[float, float]:
    """Relative errors of the loss and of the worst gradient against the twin in float64."""
    fused = {"linear_ce": linear_cross_entropy, "info_nce": info_nce, "sigmoid": sigmoid_loss}[op]
    wide = [x.detach().double().requires_grad_() if x.requires_grad else x for x in inputs]
    expected = run_both(ours(fused, "torch"), wide)
    found = run_both(call, inputs)
    relative = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
    return relative[0], max(relative[1:])


def milliseconds(call: Call, device: str) -> float:
    """The time of one call: CUDA events on a GPU."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def extra_megabytes(call: Call, device: str) -> float:
    """The peak above what was held before the call, results included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again at what is resident now
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / 1e6


def _resident(field: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return 1024.0 * float(line.split()[1])


def compare(op: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int) -> list[Row]:
    """Time all contenders in turn, ``rounds`` times; one that fails is named and left out."""
    inputs = make_inputs(op, shape, dtype, device)
    running, memory = {}, {}
    for name, call in contenders(op, device).items():
        try:
            memory[name] = [
                extra_megabytes(lambda call=call: run_both(call, inputs), device) for _ in range(2)
            ]
            running[name] = call
        except Exception as error:  # another package's failure must not end the comparison
            print(f"  {name} left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in running}
    for _ in range(rounds):
        for name, call in running.items():
            with torch.no_grad():
                times[name][0].append(milliseconds(lambda call=call: call(*inputs), device))
            times[name][1].append(milliseconds(lambda call=call: run_both(call, inputs), device))
    return [
        Row(name, statistics.median(forward), statistics.median(both), memory[name][1])
        for name, (forward, both) in times.items()
    ]


def check(op: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str, bound_name: str) -> bool:
    """Print ours against float64 and whether it is within the bounds."""
    if device == "cpu":  # float64 is slow there: fewer rows
        shape = (min(shape[0], 700), shape[1], shape[2] if op == "linear_ce" else min(shape[2], 700))
    inputs, passed = make_inputs(op, shape, dtype, device), True
    for name, call in contenders(op, device).items():
        if name.startswith("ours"):
            loss, gradient = errors(op, call, inputs)
            fine = loss <= BOUNDS[bound_name][0] and gradient <= BOUNDS[bound_name][1]
            passed &= fine
            print(f"  {name}: loss {loss:.1e}, gradients {gradient:.1e}: {'ok' if fine else 'TOO LARGE'}")
    return passed


def report(op: str, shape: tuple[int, int, int], device: str, rows: list[Row]) -> list[str]:
    """The table, and how ours stands to its goal."""
    lines = [
        f"\n### {op}, {' x '.join(f'{x:,}' for x in shape)}\n",
        "| | forward, ms | forward + backward, ms | extra memory, MB |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r.name} | {r.forward_ms:.2f} | {r.both_ms:.2f} | {r.extra_mb:.0f} |" for r in rows]
    goal = GOALS.get((device, op, shape))
    if goal and rows:
        time_found, memory_found, unit = rows[0].both_ms, rows[0].extra_mb, ("ms", "MB")
        if device == "cpu":
            plain = next(row for row in rows if row.name == "plain")
            time_found, memory_found = time_found / plain.both_ms, memory_found / plain.extra_mb
            unit = ("of plain", "of plain")
        for found, most, what in zip((time_found, memory_found), goal, unit, strict=True):
            if most is not None:
                verdict = "met" if found <= most else "missed"
                lines.append(f"\nGoal of ours: <= {most} {what}; found {found:.3g}: {verdict}.")
    return lines


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--op", choices=["linear_ce", "info_nce", "sigmoid"], action="append")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--shape", type=int, nargs=3, metavar=("ROWS", "D", "COLUMNS"))
    parser.add_argument("--rounds", type=int, help="default 20 on a GPU, 3 on a CPU")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    arguments = parser.parse_args()
    device = arguments.device
    dtype_name = arguments.dtype or ("bfloat16" if device == "cuda" else "float32")
    tf32 = device == "cuda" and dtype_name == "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"{where}; torch {torch.__version__}; {'tf32' if tf32 else dtype_name}"]
    print(lines[0])
    passed = True
    for op in arguments.op or ["linear_ce", "info_nce", "sigmoid"]:
        for shape in [tuple(arguments.shape)] if arguments.shape else SHAPES[device][op]:
            print(f"\n{op} {shape} against float64:")
            dtype = getattr(torch, dtype_name)
            passed &= check(op, shape, dtype, device, "tf32" if tf32 else dtype_name)
            if not arguments.check_only:
                rounds = arguments.rounds or (20 if device == "cuda" else 3)
                table = report(op, shape, device, compare(op, shape, dtype, device, rounds))
                print("\n".join(table))
                lines += table
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
