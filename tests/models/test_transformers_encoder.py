from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPConfig, CLIPModel

from lcl_composer.errors import ConfigError, LCLError
from lcl_composer.models.transformers_encoder import TransformersEncoder
from lcl_composer.registry import encoders
from tests.models.images import check, pixels

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
GREY = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


@pytest.mark.parametrize("model_type", ["siglip_vision_model", "clip_vision_model", "dinov2", "vit"])
def test_architectures(model_type: str):
    args = {**TINY} if model_type == "dinov2" else {**TINY, "intermediate_size": 48}
    encoder = TransformersEncoder(model_type, 32, model_args=args)
    check(encoder, 32, 16, 24)
    assert encoder.final_norm == (
        model_type != "clip_vision_model"
    )  # of CLIP the class token alone is normed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TransformersEncoder("dinov2", 32, model_args=TINY).backbone.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(GREY))
    return tmp_path


@torch.no_grad()
def test_a_pretrained_folder_with_its_own_normalisation(folder: Path):
    built = TransformersEncoder("dinov2", 32, model_args=TINY)
    built.backbone = AutoModel.from_pretrained(folder)  # whose names in memory transformers 5 changes
    loaded = TransformersEncoder("dinov2", 32, pretrained=str(folder)).eval()
    assert (loaded.recipe["mean"], loaded.recipe["std"]) == tuple(GREY.values())
    expected = built.eval()((pixels(2, 32) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(loaded(pixels(2, 32)), expected, rtol=1e-5, atol=1e-5)
    assert loaded.weights
    assert not built.weights
    again = encoders.build(loaded.recipe)
    again.load_state_dict(loaded.state_dict())  # the sizes of the folder are in the recipe
    with torch.device("meta"):
        assert TransformersEncoder("dinov2", 32, pretrained=str(folder)).width == 24


@torch.no_grad()
def test_of_a_clip_the_vision_tower_is_taken(tmp_path: Path):
    vision = {**TINY, "intermediate_size": 48, "image_size": 32}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).eval()  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(GREY))
    encoder = TransformersEncoder("clip_vision_model", 32, pretrained=str(tmp_path)).eval()
    expected = model.vision_model(encoder.normalize(pixels(2, 32))).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(pixels(2, 32)), expected, rtol=1e-5, atol=1e-5)


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _lose(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.attention.key.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _spoil(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.cls_token"] *= float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


PREPROCESSING = "preprocessor_config.json"


def test_how_its_own_images_are_resized_is_said(folder: Path):
    ours = TransformersEncoder("dinov2", 32, pretrained=str(folder)).description["resize"]
    assert ours == "shortest side, bicubic, centre crop"
    _edit(folder / PREPROCESSING, size={"height": 32, "width": 32}, resample=2)
    encoder = TransformersEncoder("dinov2", 32, pretrained=str(folder))
    assert encoder.description["resize"] == f"{ours} (its own: squash, bilinear)"
    _edit(folder / PREPROCESSING, size={"height": 96, "width": 96})
    grey = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    encoder = TransformersEncoder("dinov2", 32, pretrained=str(folder), **grey)
    assert "(its own: squash, bilinear, 96 pixels)" in encoder.description["resize"]
    (folder / PREPROCESSING).unlink()
    assert TransformersEncoder("dinov2", 32, pretrained=str(folder), **grey).own_resize == ""


BAD = {
    r"has no preprocessor_config.json that says how its pixels are .*set model.encoder.mean": lambda f: (
        f / PREPROCESSING
    ).unlink(),
    r"names no image_mean and image_std": lambda f: (f / PREPROCESSING).write_text("{}"),
    r"image_size is 32, but the preprocessor_config.json of .* gives 96 pixels; mend it, or": lambda f: _edit(
        f / PREPROCESSING, size={"height": 96, "width": 96}
    ),
    r"image_size is 32, but the preprocessor_config.json of .* gives 24 x 32 pixels": lambda f: _edit(
        f / PREPROCESSING, size=32, do_center_crop=True, crop_size={"height": 24, "width": 32}
    ),
    r"the config.json of .* is damaged \(.*\); copy|have a `model_type` key in its config": lambda f: (
        f / "config.json"
    ).write_text("[1]"),
    r"the preprocessor_config.json of .* is damaged|names no image_mean": lambda f: (
        f / PREPROCESSING
    ).write_text("[1]"),
    r"cannot be normalised by mean \['a', 'b', 'c'\]": lambda f: _edit(
        f / PREPROCESSING, image_mean=[*"abc"]
    ),
    r"rescales by 'x', which is no number": lambda f: _edit(f / PREPROCESSING, rescale_factor="x"),
    r"wants pixels times 1, here they are in 0..1": lambda f: _edit(f / PREPROCESSING, do_rescale=False),
    r"model_type is dinov2, but .* holds a siglip_vision_model": lambda f: _edit(
        f / "config.json", model_type="siglip_vision_model"
    ),
    r"lacks 1 tensors of dinov2 \('encoder.layer.1.attention.(attention.key|k_proj).weight'\)": _lose,
    r"1 of \d+ tensors are not finite \('embeddings.cls_token'\): take other weights": _spoil,
    r"cannot build 'dinov2'": lambda f: (f / "model.safetensors").write_bytes(b"\x09" * 50),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_folders(folder: Path, message: str):
    BAD[message](folder)
    with pytest.raises(LCLError, match=message) as caught:
        TransformersEncoder("dinov2", 32, pretrained=str(folder))
    assert "\n" not in str(caught.value)


def test_another_size_than_the_folders(folder: Path):
    with pytest.raises(ConfigError, match=r"image_size is 48, but .* takes 32"):
        TransformersEncoder("dinov2", 48, pretrained=str(folder))


@pytest.mark.parametrize(
    ("model_type", "model_args", "message"),
    [
        ("vitt", {}, "cannot build 'vitt'"),
        ("vit", {"hiden_size": 24}, "vit has no field 'hiden_size'; did you mean 'hidden_size'"),
        ("resnet", {}, "'resnet' is no vision transformer"),
        ("swin", {}, "cannot build 'swin'"),
    ],
)
def test_bad_settings(model_type: str, model_args: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        TransformersEncoder(model_type, 32, model_args=model_args)
