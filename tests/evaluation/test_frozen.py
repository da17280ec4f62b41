"""An exported encoder is measured as it is, beside the same one untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.config import RunConfig
from lcl_composer.errors import DataError
from lcl_composer.evaluation.frozen import evaluate_frozen
from lcl_composer.export import export_encoder, load_encoder, untrained_encoder
from lcl_composer.methods.build import build_model
from tests import runs

VIT: dict[str, Any] = {"name": "timm", "model_name": "vit_base_patch32_clip_224", "image_size": 16}
VIT["model_args"] = {"patch_size": 8, "depth": 1}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Two classes that any encoder tells apart: dark and bright noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, base in (("dark", 0), ("bright", 150)):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for number in range(8):
                pixels = (base + rng.integers(0, 100, (16, 16, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return str(tmp_path / "train"), str(tmp_path / "val")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    config = RunConfig(**runs.settings(Path("data")))
    torch.manual_seed(5)
    return export_encoder(build_model(config, vocab_size=300), config, tmp_path / "encoder")


def test_both_results_and_the_verb(exported: Path, folders: tuple[str, str], tmp_path: Path) -> None:
    found = evaluate_frozen({"name": "exported", "folder": str(exported)}, *folders)
    assert found.trained
    assert (found.trained.accuracy, found.trained.chance) == (1.0, 0.5)
    named = [f"ours={exported}", f"raw={json.dumps(VIT)}"]
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["evaluate", *named, "--out", str(out), "--probe", *folders]).output
    assert f"ours: trained 100.0%, untrained {found.untrained.accuracy:.1%}, chance 50.0%" in shown
    assert f"the exported {exported} (timm's vit_base_patch32_clip_224), weights" in shown
    assert "raw: untrained" in shown
    assert "random weights; 4 x 768 patch tokens of the last layer, after its final norm" in shown
    results = json.loads((out / "results.json").read_text())
    ours, raw = results["results"]
    assert ours["numbers"]["trained"] == 1.0
    assert ours["features"]["image_size"] == 16
    assert (raw["encoder"], raw["numbers"].keys()) == ("raw", {"untrained", "chance"})
    assert results["probe"] == {"train": folders[0], "val": folders[1], "features": "patch_mean"}


def test_untrained_differs_and_is_reproducible(exported: Path) -> None:
    torch.manual_seed(1)
    first = untrained_encoder(exported)[0].state_dict()
    torch.manual_seed(1)
    again = untrained_encoder(exported)[0].state_dict()
    name = "backbone.pos_embed"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], load_encoder(exported)[0].state_dict()[name])


def test_missing_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        evaluate_frozen(VIT, str(tmp_path / "nowhere"), str(tmp_path))
