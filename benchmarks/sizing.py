"""What each Triton kernel needs of a GPU, found by compiling it ahead of time; no GPU is needed.

Run ``python benchmarks/sizing.py > docs/kernel_sizes.md`` after a change to a kernel or a tile.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lcl_composer.kernels import info_nce_triton as info_nce
from lcl_composer.kernels import linear_cross_entropy_triton as cross_entropy
from lcl_composer.kernels import sigmoid_triton as sigmoid
from lcl_composer.kernels import tiles
from lcl_composer.kernels.linear_cross_entropy_torch import Settings
from lcl_composer.kernels.tiles import GPU

TOKENS, VOCAB, PAIRS = 16_384, 49_411, 32_768
DIMS = (512, 768, 1024)
#: The GPUs aimed at: A100, H100, B200, and the shared memory a program may use on them, in bytes.
GPUS = {80: GPU(8, 108), 90: GPU(9, 132), 100: GPU(10, 148)}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
#: Floors are for an H100 at these sustained rates.
FLOPS_PER_S, BYTES_PER_S = 800e12, 3e12


class Launch(NamedTuple):
    """A kernel with the arguments it was launched with."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Footprint(NamedTuple):
    """What a compiled kernel takes of a streaming multiprocessor."""

    registers: int  # a thread
    spilled: int  # bytes a thread in local memory
    shared: int  # bytes a program
    instruction: str  # that multiplies matrices
    threads: int


def record(call: Callable[[], object], gpu: GPU) -> list[Launch]:
    """Run ``call`` on meta tensors and return its launches, one of each kernel and set of constants."""
    launches: dict[tuple, Launch] = {}

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        types = tuple(x.dtype if isinstance(x, torch.Tensor) else type(x) for x in args)
        launches.setdefault((kernel.__name__, types, *kwargs.items()), Launch(kernel, grid, args, kwargs))

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(tiles, "gpu", return_value=gpu):
        call()
    return list(launches.values())


def compile_launch(launch: Launch, capability: int) -> Footprint:
    """Compile a recorded launch for a compute capability (80, 90, 100), specialised as the launcher would."""
    signature, constants, attributes = _specialise(launch)
    options = {k: v for k, v in launch.kwargs.items() if k in ("num_warps", "num_stages")}
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(compiled.asm["cubin"])
    found = [name for name in ("tcgen05.mma", "wgmma.mma_async", "mma.sync") if name in compiled.asm["ptx"]]
    return Footprint(
        registers, spilled, compiled.metadata.shared, (found or ["none"])[0], 32 * options["num_warps"]
    )


def _specialise(launch: Launch) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], list]]:
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.args[index] if index < len(launch.args) else launch.kwargs[parameter.name]
        may_specialise = not parameter.do_not_specialize
        if parameter.is_constexpr or (type(value) is int and value == 1 and may_specialise):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        signature[parameter.name] = _type_name(value)
        if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0 and may_specialise):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
        return "*" + (names | {torch.int64: "i64", torch.int8: "i8"})[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes a thread in local memory (stack), from cuobjdump."""
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (
        int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")
    )
    return registers, stack + local


def operations(dim: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Callable[[], object]]:
    """Each op's forward and backward at the shapes that matter, as calls on meta tensors."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    hidden, weight, targets = empty(TOKENS, dim), empty(VOCAB, dim), empty(TOKENS, dtype=torch.int64)
    token, pair = empty(TOKENS, dtype=torch.float32), empty(PAIRS, dtype=torch.float32)
    rows, columns, scalar = empty(PAIRS, dim), empty(PAIRS, dim), empty(dtype=torch.float32)
    plain = Settings(-100, 0.0, 0.0, dtype)
    return {
        "linear CE forward": lambda: cross_entropy._forward(hidden, weight, None, targets, plain),
        "linear CE backward": lambda: cross_entropy._backward(
            hidden, weight, None, targets, token, token, plain,
            torch.empty_like(hidden), torch.empty_like(weight), None,
        ),
        "InfoNCE forward": lambda: info_nce.statistics(rows, columns, scalar, None, dtype),
        "InfoNCE backward": lambda: info_nce.gradients(
            rows, columns, scalar, None, dtype, 0, pair, pair
        ),
        "sigmoid": lambda: sigmoid.sweep(rows, columns, scalar, scalar, None, dtype, 0, True),
    }  # fmt: skip


def variants(dim: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Callable[[], object]]:
    """The ops with every option on: bias, smoothing, column mask."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    hidden, weight, bias = empty(TOKENS, dim), empty(VOCAB, dim), empty(VOCAB)
    targets, token = empty(TOKENS, dtype=torch.int64), empty(TOKENS, dtype=torch.float32)
    rows, pair = empty(PAIRS, dim), empty(PAIRS, dtype=torch.float32)
    scalar, mask = empty(dtype=torch.float32), empty(PAIRS, dtype=torch.bool)
    options = Settings(-100, 1e-4, 0.1, dtype)
    return {
        "linear CE forward": lambda: cross_entropy._forward(hidden, weight, bias, targets, options),
        "linear CE backward": lambda: cross_entropy._backward(
            hidden, weight, bias, targets, token, token, options,
            torch.empty_like(hidden), torch.empty_like(weight), torch.empty_like(bias),
        ),
        "InfoNCE forward": lambda: info_nce.statistics(rows, rows, scalar, mask, dtype),
        "InfoNCE backward": lambda: info_nce.gradients(rows, rows, scalar, mask, dtype, 0, pair, pair),
        "sigmoid": lambda: sigmoid.sweep(rows, rows, scalar, scalar, mask, dtype, 0, True),
    }  # fmt: skip


def footprints(
    calls: dict[str, Callable[[], object]], capability: int
) -> Iterator[tuple[str, Launch, Footprint]]:
    """Compile what the calls launch; yield (op, launch, footprint)."""
    for name, call in calls.items():
        for launch in record(call, GPUS[capability]):
            yield name, launch, compile_launch(launch, capability)


def known_capabilities() -> list[int]:
    """Those of GPUS that the installed Triton compiles for."""
    newest = 100 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3) else 90
    return [capability for capability in GPUS if capability <= newest]


def floor_table() -> list[str]:
    """Matrix products, operations, least traffic and floor of each op on an H100."""
    lines = [
        "| op | D | matrix products | TFLOP | least traffic, GB | floor, ms |",
        "|---|---|---|---|---|---|",
    ]
    for dim in DIMS:
        for name, products, rows, columns in (
            ("linear CE, forward + backward", 4, TOKENS, VOCAB),
            ("InfoNCE, forward + backward", 4, PAIRS, PAIRS),
            ("sigmoid, forward + backward", 3, PAIRS, PAIRS),
        ):
            flops = 2 * products * rows * columns * dim
            traffic = 2 * 3 * dim * (rows + columns)  # both operands twice, both gradients once, 2 bytes each
            floor = max(flops / FLOPS_PER_S, traffic / BYTES_PER_S) * 1e3
            lines.append(
                f"| {name} | {dim} | {products} | {flops / 1e12:.2f} | {traffic / 1e9:.2f} | {floor:.1f} |"
            )
    return lines


def footprint_table(dtype: torch.dtype) -> list[str]:
    """A row for each kernel, GPU and D."""
    lines = [
        "| op | kernel | sm | D | tile m x n x k, warps, stages | programs | registers | spilled, B "
        "| shared, KB | instruction |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for capability in known_capabilities():
        for dim in DIMS:
            for name, launch, found in footprints(operations(dim, dtype), capability):
                options = launch.kwargs
                tile = "x".join(str(options[k]) for k in ("BM", "BN", "BK") if k in options)
                stages = f", {options['num_warps']}, {options.get('num_stages', '-')}"
                kernel = launch.kernel.__name__ + (" (adding)" if options.get("ADD") else "")
                lines.append(
                    f"| {name} | `{kernel}` | {capability} | {dim} | {(tile or '-') + stages} "
                    f"| {launch.grid[0]} | {found.registers} | {found.spilled} "
                    f"| {found.shared / 1024:.0f} | {found.instruction} |"
                )
    return lines


def main() -> None:
    """Print the page."""
    print("# What the Triton kernels take\n")
    print(
        f"Written by `python benchmarks/sizing.py`: compiled ahead of time with Triton {triton.__version__}, "
        "no GPU used. Registers and spills are per thread, shared memory per program; `tests/kernels/"
        "test_sizing.py` holds every kernel to no spill and to the GPU's shared memory.\n"
    )
    print(
        f"{TOKENS:,} tokens x {VOCAB:,} words; {PAIRS:,} pairs. Floors for an H100 at "
        f"{FLOPS_PER_S / 1e12:.0f} TFLOP/s and {BYTES_PER_S / 1e12:.0f} TB/s.\n"
    )
    print("\n".join(floor_table()))
    for dtype in (torch.bfloat16, torch.float32):
        print(f"\n## {str(dtype).removeprefix('torch.')}\n")
        print("\n".join(footprint_table(dtype)))


if __name__ == "__main__":
    main()
