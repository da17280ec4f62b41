from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lcl_composer.config import RunConfig
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.export import export_encoder
from lcl_composer.methods.build import build_model
from lcl_composer.models.encoder import Encoder
from lcl_composer.registry import encoders
from tests import runs
from tests.models.images import check, pixels

GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def settings(**encoder: Any) -> RunConfig:
    values = runs.settings(Path("data"))
    values["model"]["encoder"] = encoder if "name" in encoder else values["model"]["encoder"] | encoder
    return RunConfig(**values)


def exported(folder: Path, seed: int = 5) -> Encoder:
    """Export an encoder whose pixels are not CLIP's, and return it."""
    config = settings(**GREY)
    torch.manual_seed(seed)
    model = build_model(config, 300).eval()
    export_encoder(model, config, folder)
    return model.encoder


def test_the_same_features_and_normalisation(tmp_path: Path):
    original = exported(tmp_path / "encoder")
    encoder = encoders.build({"name": "exported", "folder": str(tmp_path / "encoder")})
    check(encoder, 16, 4, 32)
    encoder.check_class_token()
    assert torch.equal(encoder.eval()(pixels(2, 16)), original(pixels(2, 16)))
    assert torch.equal(encoder.class_tokens(pixels(2, 16)), original.class_tokens(pixels(2, 16)))
    assert encoder.description["mean"] == [0.5, 0.5, 0.5]
    assert str(tmp_path / "encoder") in encoder.description["encoder"]


def test_its_weights_are_recognised(tmp_path: Path):
    for name, seed in (("one", 5), ("other", 6)):
        exported(tmp_path / name, seed)
    one, again, other = (
        encoders.build({"name": "exported", "folder": str(tmp_path / name)})
        for name in ("one", "one", "other")
    )
    assert one.weights == again.weights != other.weights
    with torch.device("meta"):
        on_meta = encoders.build({"name": "exported", "folder": str(tmp_path / "one")})
    assert (on_meta.width, on_meta.weights) == (32, "")


def test_exported_again_it_needs_its_first_folder_no_more(tmp_path: Path):
    exported(tmp_path / "one")
    config = settings(name="exported", folder=str(tmp_path / "one"))
    model = build_model(config, 300)
    export_encoder(model, config, tmp_path / "two")
    (tmp_path / "one").rename(tmp_path / "gone")
    twice = encoders.build({"name": "exported", "folder": str(tmp_path / "two")})
    assert twice.weights == model.encoder.weights


def test_another_size_is_refused(tmp_path: Path):
    exported(tmp_path / "encoder")
    values = settings(name="exported", folder=str(tmp_path / "encoder")).model_dump()
    values["data"]["image_size"] = 32
    with pytest.raises(
        ConfigError, match=r"data.image_size is 32, but the encoder \(the exported .*takes 16"
    ):
        build_model(RunConfig(**values), 300)


def edited(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


BAD: dict[str, Any] = {
    r"encoder: not an exported encoder, model.safetensors is missing": lambda f: (
        f / "model.safetensors"
    ).unlink(),
    r"encoder: damaged or not an exported encoder: .*gives 4 tokens of 32, .* says 4 of 64": lambda f: edited(
        f, width=64
    ),
    r"encoder: damaged or not an exported encoder: .*std: encoder 'timm' takes": lambda f: edited(
        f, std=[1.0]
    ),
    r"encoder: damaged or not an exported encoder: config.json does not say encoder, tokens_per_image, "
    "width; copy it anew, or write one with 'lcl export": lambda f: (f / "config.json").write_text(
        '{"architecture": "vit", "mean": [], "std": []}'
    ),
    r"config.json holds a list, not names with values": lambda f: (f / "config.json").write_text("[1]"),
    r"config.json says encoder by a list, not by settings": lambda f: edited(f, encoder=["timm"]),
    r"config.json does not say embed_dim": lambda f: edited(f, pooler={"name": "attentive"}, embed_dim=None),
    r"config.json is no JSON \(": lambda f: (f / "config.json").write_text("{"),
    r"encoder: damaged or not an exported encoder: .*unknown encoder 'tim'": lambda f: edited(
        f, encoder={"name": "tim"}
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_folders(tmp_path: Path, message: str):
    exported(tmp_path / "encoder")
    BAD[message](tmp_path / "encoder")
    with pytest.raises(DataError, match=message) as caught:
        encoders.build({"name": "exported", "folder": str(tmp_path / "encoder")})
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_and_one_beside_it(tmp_path: Path):
    exported(tmp_path / "run/encoder")
    with pytest.raises(DataError, match=r"config.json is missing; did you mean .*run/encoder\?"):
        encoders.build({"name": "exported", "folder": str(tmp_path / "run")})
    with pytest.raises(
        DataError, match=r"nowhere: no such folder; an exported encoder is one such as runs/NAME"
    ):
        encoders.build({"name": "exported", "folder": str(tmp_path / "nowhere")})
