"""Sharded checkpoints are read as a whole one would be, and no code in them runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lcl_composer.checkpoint import read_begun, read_model_state, read_progress
from lcl_composer.errors import DataError
from lcl_composer.export import export_run, load_encoder
from lcl_composer.sharded import read_sharded, read_without_code
from tests.distributed import run_ranks
from tests.export.taken import config_of, contents, model_of, pixels

WEIGHT = torch.arange(30.0).view(10, 3)
BIAS = torch.arange(4, dtype=torch.float64)


def save_alone(folder: Path, values: dict[str, Any]) -> Path:
    dcp.save(values, checkpoint_id=folder, no_dist=True)
    return folder


def save_shards(rank: int, world_size: int, folder: Path) -> None:
    """Rows of one tensor on each rank, uneven; columns of another; a third on both."""
    mesh = init_device_mesh("cpu", (world_size,))
    tensors = {
        "rows": distribute_tensor(WEIGHT[:7].clone(), mesh, [Shard(0)]),
        "columns": distribute_tensor(WEIGHT, mesh, [Shard(1)]),
        "whole": distribute_tensor(BIAS, mesh, [Replicate()]),
        "scalar": torch.tensor(3),
    }
    state = {
        "model": tensors,
        "run_name": "tiny",
        "optimizers": {"Adam": {"state": {"rows": tensors["rows"]}}},
    }
    dcp.save({"state": state}, checkpoint_id=folder)


@pytest.mark.world_size(2)
def test_tensors_of_two_ranks_are_put_together(tmp_path: Path) -> None:
    run_ranks(2, save_shards, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2
    found = read_sharded(tmp_path / "sharded", without=("state.optimizers.",))["state"]
    assert found.keys() == {"model", "run_name"}
    expected = {"rows": WEIGHT[:7], "columns": WEIGHT, "whole": BIAS, "scalar": torch.tensor(3)}
    assert found["model"].keys() == expected.keys()
    assert all(torch.equal(found["model"][name], expected[name]) for name in expected)


@torch.no_grad()
def test_a_run_with_sharded_checkpoints_is_exported(tmp_path: Path) -> None:
    config = config_of()
    model = model_of(config)
    values = contents(model, config)
    name = "encoder.backbone.pos_embed"
    average = {name: model.state_dict()[name] + 1.0}
    values["state"]["algorithms"] = [("EMA", {"average": average, "in_model": False}), ("Other", {"x": 1})]
    folder = save_alone(tmp_path / "runs/tiny/checkpoints/ep0-ba5", values)
    assert torch.equal(read_model_state(folder, "ema")[name], average[name])
    assert read_model_state(folder).keys() == model.state_dict().keys()
    assert read_begun(folder).settings["method"]["name"] == "lcl"
    assert (progress := read_progress(folder)) is not None
    assert (progress.batches, progress.documents, progress.images) == (5, 20, 1234)
    (tmp_path / "runs/tiny/config.yaml").write_text("run_name: tiny\n")
    encoder, _ = load_encoder(export_run(tmp_path / "runs/tiny", tmp_path / "out"))
    assert torch.equal(encoder(pixels()), model.encoder(pixels()))


def test_damaged_and_missing_pieces(tmp_path: Path) -> None:
    folder = save_alone(tmp_path / "sharded", {"state": {"model": {"weight": WEIGHT, "bias": BIAS}}})
    piece = next(folder.glob("*.distcp"))
    whole = piece.read_bytes()
    piece.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"checkpoint .*sharded: ") as caught:
        read_model_state(folder)
    assert "\n" not in str(caught.value)
    piece.unlink()
    with pytest.raises(DataError, match=r"sharded: cannot be read: .*No such file"):
        read_model_state(folder)
    metadata = folder / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:100])
    with pytest.raises(DataError, match=r"sharded: cannot be read"):
        read_model_state(folder)


class Harm:
    """Runs a command when it is unpickled, in a pickle of any protocol."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_no_code_runs(tmp_path: Path) -> None:
    """A hostile .metadata, and a hostile value in a piece."""
    folder = save_alone(
        tmp_path / "sharded", {"state": {"model": {"weight": WEIGHT}, "x": Harm(tmp_path / "a")}}
    )
    with pytest.raises(DataError, match="damaged or holds code"):
        read_model_state(folder)
    assert not (tmp_path / "a").exists()
    # A pickle by hand: os.mkdir(path), protocol 0.
    hostile = b"cos\nmkdir\n(V" + str(tmp_path / "b").encode() + b"\ntR."
    with pytest.raises(ValueError, match="opcode UNICODE has no place"):
        read_without_code(hostile)
    (folder / ".metadata").write_bytes(hostile)
    with pytest.raises(DataError, match="cannot be read"):
        read_model_state(folder)
    assert not (tmp_path / "b").exists()
    called = read_without_code(b"\x80\x02cos\nmkdir\nX\x01\x00\x00\x00b\x85R.")
    assert (called.name, called.arguments) == ("os.mkdir", ("b",))
    assert not Path("b").exists()
