from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from lcl_composer.errors import ConfigError
from lcl_composer.models.encoder import PixelNormalizer, TimmEncoder
from lcl_composer.registry import encoders
from tests.models.images import check, pixels
from tests.models.tiny import tiny_encoder

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}


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


@torch.no_grad()
def test_under_autocast_pixels_are_rounded_once():
    raw, normalize = pixels(2, 16), PixelNormalizer()
    expected = normalize(raw).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = normalize(raw)
        tokens = tiny_encoder()(raw)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)  # another rounding of the reciprocal
    assert (found == expected).float().mean() > 0.99
    assert torch.isfinite(tokens).all()
    with torch.autocast("cpu", torch.float16):
        assert normalize(raw).dtype == torch.float32


def test_normaliser_is_no_part_of_the_state():
    assert not [name for name in tiny_encoder().state_dict() if name.startswith("normalize")]


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("vit_base_patch32_clip_223", {}, r"no model .*did you mean 'vit_base_patch32_clip_2"),
        ("vit_base_patch32_clip_224", {"dephth": 2}, "could not build .*dephth"),
        ("vit_base_patch32_clip_224", {**VIT, "num_heads": 5}, "could not build .*divisible"),
        (
            "inception_v3",
            {},
            r"no patch tokens of 32 pixels \(.*(small|input size)\); its own size is 299",
        ),
    ],
)
def test_timm_errors(name: str, model_args: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        TimmEncoder(name, 32, model_args=model_args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size", "model_args", "final_norm"),
    [
        ("vit_base_patch32_clip_224", 32, VIT, True),
        ("vit_base_patch32_clip_224", 32, {**VIT, "final_norm": False}, False),
        ("swin_tiny_patch4_window7_224", 64, SWIN, True),
        ("convnext_atto", 64, {}, False),  # its norm stands behind the pooling
        ("resnet18", 64, {}, False),
    ],
)
def test_the_description_says_where_features_are_read(
    name: str, size: int, model_args: Any, final_norm: bool
):
    encoder = TimmEncoder(name, size, model_args=model_args, mean=(0.5, 0.5, 0.5))
    assert encoder.final_norm == final_norm
    about = encoder.description
    assert ("after its final norm" in about["features"]) == final_norm
    assert (about["width"], about["image_size"], about["weights"]) == (encoder.width, size, None)
    assert (about["mean"], about["std"]) == ([0.5] * 3, list(OPENAI_CLIP_STD))
    assert json.loads(json.dumps(about)) == about


def test_its_own_normalisation_is_in_its_recipe():
    grey = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    encoder = TimmEncoder("vit_base_patch32_clip_224", 16, model_args=VIT, **grey)
    torch.testing.assert_close(encoder.normalize(pixels(1, 16)), pixels(1, 16) / 127.5 - 1)
    again = encoders.build(encoder.recipe)
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels(2, 16)), encoder.eval()(pixels(2, 16)))
    with pytest.raises(
        ConfigError, match=r"cannot be normalised by .*std \[0.5, 0.0, 0.5\]; each takes three"
    ):
        TimmEncoder("vit_base_patch32_clip_224", 16, model_args=VIT, std=(0.5, 0.0, 0.5))


def test_pretrained_weights_bring_their_normalisation_and_are_recognised(monkeypatch: pytest.MonkeyPatch):
    """SigLIP's pixels are not CLIP's. No hub is asked: the weights are random ones under timm's name."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda pretrained, **args: create(**args))
    torch.manual_seed(0)
    one, other = (TimmEncoder("vit_base_patch16_siglip_224", 32, True, model_args=VIT) for _ in range(2))
    assert one.recipe["mean"] == [0.5, 0.5, 0.5]
    assert len(one.weights) == 64
    assert one.weights != other.weights
    assert "(its own: shortest side, bicubic, centre crop of 90.0%, 224 pixels)" in one.description["resize"]
    with torch.device("meta"):
        assert not TimmEncoder("vit_base_patch16_siglip_224", 32, True, model_args=VIT).weights
