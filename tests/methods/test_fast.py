"""Whole runs, sharded or not: the same losses, and each goes on from the checkpoints of the others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lcl_composer.checkpoint import read_model_state
from lcl_composer.config import RunConfig
from lcl_composer.errors import ConfigError
from lcl_composer.export import export_run, load_encoder
from lcl_composer.methods.fast import named_blocks
from tests import runs
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks
from tests.methods import whole_runs
from tests.methods.whole_runs import pairs
from tests.models.tiny import tiny_model

pytestmark = pytest.mark.world_size(2)

FSDP = {"parallelism": {"fsdp": {"reshard_after_forward": True}}}
RECOMPUTED = {"activation_checkpointing": {"parts": ["encoder", "language_model"], "every": 2}}
TOKENS = {"device_train_microbatch_tokens": 64}
ALGORITHMS = {
    "gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 0.5},
    "ema": {"half_life": "2ba"},
    "grad_cache": {},
}
CLIP = {
    "method": {"name": "clip"},
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.2, "fused": True},
}
COMPILED = {"compile": {"parts": ["encoder", "language_model"], "backend": "eager"}}


def test_a_part_without_blocks_is_refused():
    run = RunConfig(**runs.settings(Path("data"), compile={"parts": ["encoder", "pooler"]}))
    with pytest.raises(ConfigError, match=r"compile\.parts: pooler is not made of repeated blocks"):
        named_blocks(run, tiny_model())


def settings(data: Path, **changes: Any) -> dict[str, Any]:
    """Six batches of six documents, a checkpoint after each second one, held-out losses after each third."""
    values = runs.settings(data, max_duration="6ba", save_interval="2ba", algorithms=ALGORITHMS)
    values |= {"global_train_batch_size": 6, "eval_interval": "3ba", "evaluation": {"retrieval": {}}}
    values["data"]["eval"] = {"local": str(data / "train"), "num_workers": 0}
    values["callbacks"] = {"gradient_norms": {"every": "1ba"}, "speed_monitor": {"window_size": 1}}
    return values | changes


def fit(folder: Path, values: dict[str, Any], rank: int = 0, cut_at: int | None = None) -> None:
    """Train in ``folder``, where TF32 is not what Composer has made of it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as Composer has it
    whole_runs.fit(folder, values, cut_at, f"rank{rank}")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def on_a_rank(rank: int, ranks: int, folder: Path, data: Path, pair_data: Path) -> None:
    """All runs in one launch."""
    as_launched(rank, ranks)
    fit(folder, settings(data, run_name="ddp"), rank)
    fit(folder, settings(data, run_name="fsdp", **FSDP, **RECOMPUTED, **TOKENS), rank)
    fit(folder, settings(data, run_name="from_one", **FSDP), rank)
    fit(folder, settings(data, run_name="mixed", **FSDP, **TOKENS), rank, cut_at=3)
    fit(folder, settings(data, run_name="mixed", **COMPILED), rank, cut_at=5)
    fit(folder, settings(data, run_name="to_one", **FSDP), rank, cut_at=5)
    fit(folder, settings(pair_data, run_name="clip_ddp", **CLIP), rank)
    fit(folder, settings(pair_data, run_name="clip_fsdp", **CLIP, **FSDP, **RECOMPUTED, **COMPILED), rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything has run; the working directory stays."""
    folder, here = tmp_path_factory.mktemp("fsdp"), Path.cwd()
    data = runs.write_data(folder / "data", [runs.made_up(index) for index in range(24)])
    pair_data = runs.write_data(folder / "pairs", pairs(40))
    try:
        fit(folder, settings(data, run_name="one"))
        fit(folder, settings(data, run_name="from_one"), cut_at=3)
        run_ranks(2, on_a_rank, folder, data, pair_data)
        fit(folder, settings(data, run_name="mixed"))
        fit(folder, settings(data, run_name="to_one"))
    finally:
        os.chdir(here)
    return folder


def assert_same_losses(folder: Path, name: str, expected: str) -> None:
    found, wanted = (runs.read_metrics(folder, run) for run in (name, expected))
    assert found.keys() == wanted.keys()
    assert len(found) == 6
    for batch, losses in wanted.items():
        assert found[batch] == pytest.approx(losses, rel=1e-5), f"{name}, batch {batch}"


@pytest.mark.parametrize("name", ["ddp", "fsdp", "from_one", "mixed", "to_one"])
def test_losses_are_those_of_one_process(name: str, folder: Path):
    assert_same_losses(folder, name, "one")


def test_losses_of_clip(folder: Path):
    assert_same_losses(folder, "clip_fsdp", "clip_ddp")


def test_measurements_are_those_of_one_process(folder: Path):
    """Held-out losses, norms of gradients before and after clipping, and retrieval with EMA's average."""
    found, expected = (numbers(folder, name) for name in ("fsdp", "ddp"))
    assert found.keys() == expected.keys()
    assert {"gradient_norm/encoder", "gradient_norm/total_clipped"} <= found.keys()
    assert any(name.startswith("final/retrieval") for name in found)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def numbers(folder: Path, name: str) -> dict[str, float]:
    """The last of each metric that does not tell the time."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    assert last["throughput/flops_per_sec"] > 0
    kinds = ("gradient_norm/", "final/", "metrics/")
    return {key: value for key, value in last.items() if key.startswith(kinds)}


@torch.no_grad()
def test_checkpoints_and_exports(folder: Path, tmp_path: Path):
    """A sharded run's checkpoint is whole; its average and its weights are exported as any other's."""
    run, plain = folder / "runs/fsdp", folder / "runs/ddp"
    for weights in ("trained", "ema"):
        found, expected = (
            read_model_state(path / "checkpoints/ep1-ba6-rank0.pt", weights)  # type: ignore[arg-type]
            for path in (run, plain)
        )
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    written = load_file(run / "encoder/model.safetensors")
    again = load_file(export_run(run, tmp_path / "ema", weights="ema") / "model.safetensors")
    assert written.keys() == again.keys()
    assert all(torch.equal(written[name], again[name]) for name in written)
    encoder, _ = load_encoder(run / "encoder")
    assert encoder(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 4, 32)
