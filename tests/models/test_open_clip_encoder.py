"""Our features of OpenCLIP's models, and of the authors' release, against OpenCLIP's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from lcl_composer.errors import ConfigError, LCLError
from lcl_composer.models.open_clip_encoder import OpenCLIPEncoder
from lcl_composer.models.released import to_released
from lcl_composer.registry import encoders
from tests.models.images import check, pixels
from tests.models.tiny import IMAGE_SIZE, WIDTH, tiny_model

VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 12}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
TIMM = {"image_size": 64, "timm_model_name": "mobilenetv3_small_050", "timm_pool": "avg"}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def config_of(vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, **more}


def their_model(vision: dict[str, Any], **more: Any) -> Any:
    """OpenCLIP's, with random weights in which no norm is a plain one."""
    torch.manual_seed(0)
    text = CLIPTextCfg(**TEXT)
    model = open_clip.CLIP(16, CLIPVisionCfg(**vision), text, output_dict=False, **more).eval()
    for name, parameter in model.visual.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return model


def saved(folder: Path, model: Any, config: dict[str, Any]) -> dict[str, str]:
    """Settings of our encoder for a model config and a safetensors file."""
    (folder / "Tiny.json").write_text(json.dumps(config))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "tiny.safetensors")
    return {"model": str(folder / "Tiny.json"), "weights": str(folder / "tiny.safetensors")}


@pytest.mark.parametrize(
    ("change", "quick_gelu"), [({}, False), ({"ls_init_value": 0.1, "pool_type": "avg"}, True)]
)
@torch.no_grad()
def test_features_of_a_vit_are_open_clips(tmp_path: Path, change: dict[str, Any], quick_gelu: bool):
    vision = VIT | change
    model = their_model(vision, quick_gelu=quick_gelu)
    encoder = OpenCLIPEncoder(**saved(tmp_path, model, config_of(vision, quick_gelu=quick_gelu))).eval()
    image = encoder.normalize(pixels(3, 32))
    model.visual.output_tokens = True
    pooled, tokens = model.visual(image)
    torch.testing.assert_close(encoder(pixels(3, 32)), tokens, rtol=1e-5, atol=1e-5)
    assert encoder.final_norm
    if not change:
        encoder.check_class_token()
        projected = encoder.class_tokens(pixels(3, 32)) @ model.visual.proj
        torch.testing.assert_close(projected, pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vision", [{**VIT, "attentional_pool": True}, {**VIT, "final_ln_after_pool": True}])
@torch.no_grad()
def test_a_norm_behind_the_pooling_is_not_applied(tmp_path: Path, vision: dict[str, Any]):
    model = their_model(vision)
    encoder = OpenCLIPEncoder(**saved(tmp_path, model, config_of(vision))).eval()
    tower = model.visual
    expected = tower.transformer(tower._embeds(encoder.normalize(pixels(2, 32))))[:, 1:]
    torch.testing.assert_close(encoder(pixels(2, 32)), expected, rtol=1e-5, atol=1e-5)
    assert "with no norm after it" in encoder.description["features"]
    with pytest.raises(ConfigError, match="has no class token after a norm"):
        encoder.check_class_token()


@torch.no_grad()
def test_features_of_a_resnet_and_of_a_timm_model(tmp_path: Path):
    model = their_model(RESNET)
    image = pixels(2, 64)
    encoder = OpenCLIPEncoder(**saved(tmp_path, model, config_of(RESNET))).eval()
    expected = model.visual.forward_intermediates(encoder.normalize(image))["image_intermediates"][-1]
    torch.testing.assert_close(encoder(image), expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    model = their_model(TIMM)
    encoder = OpenCLIPEncoder(**saved(tmp_path, model, config_of(TIMM))).eval()
    expected = model.visual.trunk.forward_features(encoder.normalize(image))
    torch.testing.assert_close(encoder(image), expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_it_trains_and_its_recipe_builds_it_again():
    encoder = OpenCLIPEncoder(config_of(VIT))
    check(encoder, 32, 16, 48)
    assert not encoder.weights
    again = encoders.build(json.loads(json.dumps(encoder.recipe)))
    again.load_state_dict(encoder.state_dict())


@torch.no_grad()
def test_a_training_checkpoint_and_a_folder(tmp_path: Path):
    model = their_model(VIT)
    plain = OpenCLIPEncoder(**saved(tmp_path, model, config_of(VIT))).eval()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": state}, tmp_path / "epoch_3.pt")
    trained = OpenCLIPEncoder(config_of(VIT), str(tmp_path / "epoch_3.pt")).eval()
    assert torch.equal(trained(pixels(2, 32)), plain(pixels(2, 32)))
    assert trained.weights == plain.weights != ""
    (tmp_path / "tiny.safetensors").rename(tmp_path / "open_clip_model.safetensors")
    grey = {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    whole = {"model_cfg": config_of(VIT), "preprocess_cfg": grey}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(whole))
    of_folder = OpenCLIPEncoder(str(tmp_path)).eval()
    assert of_folder.weights == plain.weights
    expected = plain(pixels(2, 32) / 127.5 - 1)
    torch.testing.assert_close(of_folder(pixels(2, 32)), expected, rtol=1e-5, atol=1e-5)
    assert "its own: squash" in of_folder.description["resize"]


@torch.no_grad()
def test_the_authors_release(tmp_path: Path):
    """A released state dict, whose image tower has no projection, and its model config."""
    ours = tiny_model().eval()
    vision = {
        "image_size": IMAGE_SIZE,
        "layers": 2,
        "width": WIDTH,
        "head_width": WIDTH // 2,
        "patch_size": 8,
    }
    config = config_of(vision, pool_project_cfg={"pool_proj_type": "attn"}, custom_text=True)
    (tmp_path / "LCL_tiny.json").write_text(json.dumps(config))
    torch.save(to_released(ours.state_dict()), tmp_path / "lcl.pt")
    encoder = OpenCLIPEncoder(str(tmp_path / "LCL_tiny.json"), str(tmp_path / "lcl.pt")).eval()
    image = pixels(3, IMAGE_SIZE)
    torch.testing.assert_close(encoder(image), ours.encoder(image), rtol=1e-5, atol=1e-5)


def test_published_names():
    with torch.device("meta"):
        clip = encoders.build({"name": "open_clip", "model": "ViT-B-16"})
        siglip = encoders.build({"name": "open_clip", "model": "ViT-B-16-SigLIP"})
    assert (clip.tokens_per_image, clip.width, clip.image_size) == (196, 768, 224)
    assert siglip.recipe["mean"] == [0.5, 0.5, 0.5] != clip.recipe["mean"]
    assert "(its own: squash, bicubic)" in siglip.description["resize"]
    assert clip.own_resize == ""


def spoilt(folder: Path, **changes: torch.Tensor) -> dict[str, Any]:
    """A checkpoint in which tensors are others."""
    state = their_model(VIT).state_dict() | changes
    torch.save(state, folder / "spoilt.pt")
    return {"model": config_of(VIT), "weights": str(folder / "spoilt.pt")}


def truncated(folder: Path) -> dict[str, Any]:
    settings = spoilt(folder)
    whole = (folder / "spoilt.pt").read_bytes()
    (folder / "spoilt.pt").write_bytes(whole[: len(whole) // 2])
    return settings


class Code:
    """What a checkpoint must not hold."""


def with_code(folder: Path) -> dict[str, Any]:
    torch.save({"state_dict": Code()}, folder / "code.pt")
    return {"model": config_of(VIT), "weights": str(folder / "code.pt")}


def preprocessed(preprocess: Any) -> dict[str, Any]:
    return {"model": {"model_cfg": config_of(VIT), "preprocess_cfg": preprocess}}


def not_json(folder: Path) -> dict[str, Any]:
    (folder / "model.json").write_text("{")
    return {"model": str(folder / "model.json")}


def another_size(folder: Path) -> dict[str, Any]:
    return {"model": {"model_cfg": config_of(VIT), "preprocess_cfg": {"size": 48}}}


BAD: dict[str, Any] = {
    r"OpenCLIP has no model 'ViT-B-61'; did you mean 'ViT-B-": lambda f: {"model": "ViT-B-61"},
    r"weights .*absent.pt: no such file": lambda f: {"model": config_of(VIT), "weights": f"{f}/absent.pt"},
    r"spoilt.pt: cannot be read, it is truncated or holds code": truncated,
    r"code.pt: cannot be read, it is truncated or holds code": with_code,
    r"spoilt.pt: another architecture, 1 tensors differ \('conv1.weight' is .*4, 4\) there": lambda f: spoilt(
        f, **{"visual.conv1.weight": torch.zeros(48, 3, 4, 4)}
    ),
    r"spoilt.pt: 1 of \d+ tensors are not finite \('ln_pre.bias'\)": lambda f: spoilt(
        f, **{"visual.ln_pre.bias": torch.full((48,), float("nan"))}
    ),
    r"spoilt.pt: no tensor visual.trunk.\*; is it a checkpoint": lambda f: {
        **spoilt(f),
        "model": config_of(TIMM),
    },
    r"model.json: no JSON": not_json,
    r"its preprocess_cfg holds no settings; copy it anew": lambda f: preprocessed([1]),
    r"cannot be normalised by mean 3 and": lambda f: preprocessed({"mean": 3}),
    r"a config: its preprocessing gives 48 pixels, its vision_cfg takes 32": another_size,
    r"takes images of \[32, 64\] pixels; only squares": lambda f: {
        "model": config_of({**VIT, "image_size": [32, 64]})
    },
    r"no model config of OpenCLIP \(embed_dim and vision_cfg are needed\)": lambda f: {"model": {}},
    r"OpenCLIP cannot build a config: .*'dephth'": lambda f: {"model": config_of({**VIT, "dephth": 2})},
    r"none of open_clip_model.safetensors, .* in it": lambda f: {"model": str(f)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(tmp_path: Path, message: str):
    with pytest.raises(LCLError, match=message) as caught:
        OpenCLIPEncoder(**BAD[message](tmp_path))
    assert "\n" not in str(caught.value)
