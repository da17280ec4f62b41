"""Every kernel compiles for the GPUs aimed at, spills nothing and fits the shared memory; no GPU needed."""

from __future__ import annotations

import pytest

from tests.kernels import cases

pytest.importorskip("triton")
if cases.INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from benchmarks import sizing

#: What multiplies matrices there: a kernel that falls back to an older instruction is several times slower.
INSTRUCTIONS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
CASES = [(c, d) for c in sizing.known_capabilities() for d in sizing.DIMS if c != 100 or d == 768]


@pytest.mark.parametrize(("capability", "dim"), CASES)
def test_no_spill_and_fits(capability: int, dim: int):
    calls = list(sizing.footprints(sizing.operations(dim), capability))
    assert {launch.kernel.__name__ for _, launch, _ in calls} == {
        "_logit_tiles", "_logit_gradient_tiles", "_statistics_tiles", "_gradient_tiles", "_sigmoid_tiles",
        "_matmul", "_log_sum_exp",
    }  # fmt: skip
    for _, launch, found in calls:
        hold(launch, found, capability)


@pytest.mark.parametrize("capability", sizing.known_capabilities())
def test_every_option_on(capability: int):
    for _, launch, found in sizing.footprints(sizing.variants(768), capability):
        hold(launch, found, capability)


def hold(launch: sizing.Launch, found: sizing.Footprint, capability: int) -> None:
    name = launch.kernel.__name__
    assert found.spilled == 0, (name, found)
    assert found.shared <= sizing.SHARED_MEMORY[capability], (name, found)
    if name != "_log_sum_exp":
        assert found.instruction == INSTRUCTIONS[capability], (name, found)


def test_a_spill_is_seen():
    launch = sizing.record(sizing.operations(512)["InfoNCE backward"], sizing.GPUS[80])[0]
    tight = launch._replace(kwargs={**launch.kwargs, "BM": 256, "BN": 256})
    assert sizing.compile_launch(tight, 80).spilled > 0
