from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from lcl_composer.errors import ConfigError
from lcl_composer.models.encoder import Encoder, PixelNormalizer, TimmEncoder, TransformersEncoder
from tests.models.tiny import tiny_encoder

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
HUGGING_FACE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


def pixels(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def check(encoder: Encoder, size: int, tokens: int, width: int) -> None:
    """Shapes as announced, every image by itself, and a gradient for all that is trained."""
    assert (encoder.tokens_per_image, encoder.width, encoder.image_size) == (tokens, width, size)
    output = encoder.train()(pixels(3, size))
    assert output.shape == (3, tokens, width)
    output.square().sum().backward()
    wrong = [n for n, p in encoder.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert not wrong
    with torch.no_grad():
        alone = encoder.eval()(pixels(3, size)[1:2])
        torch.testing.assert_close(alone, encoder(pixels(3, size))[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "model_args", "tokens", "width"),
    [
        ("vit_base_patch32_clip_224", 32, VIT, 16, 24),  # a class token
        ("vit_base_patch14_reg4_dinov2", 32, VIT, 16, 24),  # four registers too
        ("resnet18", 64, {}, 4, 512),  # [I, C, h, w]
        ("resnet18", 32, {}, 1, 512),  # one token, from which BatchNorm can learn nothing in a batch of one
        ("swin_tiny_patch4_window7_224", 64, SWIN, 4, 192),  # [I, h, w, C]
        ("convnext_atto", 64, {}, 4, 320),  # its norm belongs to the head: frozen
        ("flexivit_small", 32, VIT, 16, 24),  # what follows is built for the size, which is not its own
        ("mixer_s32_224", 64, {}, 4, 512),
        ("levit_128s", 64, {}, 1, 384),
        ("maxvit_rmlp_pico_rw_256", 64, {}, 4, 256),
    ],
)
def test_timm(name: str, size: int, model_args: dict[str, Any], tokens: int, width: int):
    check(TimmEncoder(name, size, model_args=model_args), size, tokens, width)


@pytest.mark.parametrize("model_type", ["siglip_vision_model", "clip_vision_model", "dinov2", "vit"])
def test_transformers(model_type: str):
    args = {**HUGGING_FACE} if model_type == "dinov2" else {**HUGGING_FACE, "intermediate_size": 48}
    check(TransformersEncoder(model_type, 32, model_args=args), 32, 16, 24)


def test_feature_maps_keep_the_order_of_patches():
    """Tokens run over rows first, so that an attention map can be folded back."""
    encoder = TimmEncoder("resnet18", 64).eval()
    with torch.no_grad():
        image = encoder.normalize(pixels(1, 64))
        features = encoder.backbone.forward_features(image)
        tokens = encoder(image)
    assert torch.equal(tokens[0, 1], features[0, :, 0, 1])
    assert torch.equal(tokens[0, 2], features[0, :, 1, 0])


def test_class_token_is_left_out():
    encoder = tiny_encoder().eval()
    with torch.no_grad():
        image = encoder.normalize(pixels(2, 16))
        assert torch.equal(encoder(image), encoder.backbone.forward_features(image)[:, 1:])


def test_uint8_is_normalised_and_float_is_not():
    raw = pixels(2, 16)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    expected = (raw.float() / 255 - mean) / std
    normalize = PixelNormalizer()
    torch.testing.assert_close(normalize(raw), expected)
    assert normalize(expected) is expected
    encoder = tiny_encoder().eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(raw), encoder(expected), rtol=1e-4, atol=1e-5)


def test_normaliser_is_no_part_of_the_state():
    assert not [name for name in tiny_encoder().state_dict() if name.startswith("normalize")]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(checkpointing: bool):
    torch.manual_seed(0)
    encoder = TimmEncoder(
        "vit_base_patch32_clip_224", 16, gradient_checkpointing=checkpointing, model_args=VIT
    )
    assert bool(encoder.backbone.grad_checkpointing) == checkpointing
    encoder(pixels(2, 16)).square().sum().backward()
    gradient = encoder.backbone.blocks[0].attn.qkv.weight.grad
    torch.manual_seed(0)
    plain = TimmEncoder("vit_base_patch32_clip_224", 16, model_args=VIT)
    plain(pixels(2, 16)).square().sum().backward()
    torch.testing.assert_close(gradient, plain.backbone.blocks[0].attn.qkv.weight.grad)


def test_transformers_pretrained_folder(tmp_path: Path):
    built = TransformersEncoder("dinov2", 32, model_args=HUGGING_FACE).eval()
    built.backbone.save_pretrained(tmp_path)
    loaded = TransformersEncoder("dinov2", 32, pretrained=str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(pixels(2, 32)), built(pixels(2, 32)))
    with pytest.raises(ConfigError, match=r"image_size is 48, but .* takes 32"):
        TransformersEncoder("dinov2", 48, pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("vit_base_patch32_clip_223", {}, r"no model .*did you mean 'vit_base_patch32_clip_2"),
        ("vit_base_patch32_clip_224", {"dephth": 2}, "could not build .*dephth"),
        ("vit_base_patch32_clip_224", {**VIT, "num_heads": 5}, "could not build .*divisible"),
        ("inception_v3", {}, r"gives no patch tokens of 32 pixels \(.*too small\); its own size is 299"),
    ],
)
def test_timm_errors(name: str, model_args: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        TimmEncoder(name, 32, model_args=model_args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "model_args", "message"),
    [
        ("vitt", {}, "cannot build 'vitt'"),
        ("vit", {"hiden_size": 24}, "vit has no field 'hiden_size'; did you mean 'hidden_size'"),
        ("resnet", {}, "'resnet' is no vision transformer"),
        ("swin", {}, "cannot build 'swin'"),
    ],
)
def test_transformers_errors(model_type: str, model_args: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        TransformersEncoder(model_type, 32, model_args=model_args)
