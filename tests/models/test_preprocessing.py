"""How each library says what was done to the images of its weights, and what is said of it here."""

from __future__ import annotations

from typing import Any

import pytest
import timm

from lcl_composer.models.preprocessing import of_open_clip, of_timm, of_transformers

CROP = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}


@pytest.mark.parametrize(
    ("processor", "size", "how"),
    [
        ({}, None, ""),  # it does not say
        ({**CROP, "size": {"shortest_edge": 224}, "resample": 3}, 224, ""),
        (
            {"do_center_crop": True, "crop_size": 224, "size": 224},
            224,
            "",
        ),  # CLIP's, of before sizes had names
        (
            {**CROP, "size": {"shortest_edge": 256}},
            224,
            "shortest side to 256 pixels, bicubic, centre crop of 224",
        ),
        ({"size": {"height": 96, "width": 96}, "resample": 2}, 96, "squash, bilinear"),
        ({"size": 224, "resample": 2}, 224, "squash, bilinear"),  # ViT's, of before sizes had names
        ({"size": {"shortest_edge": 224}}, 224, "shortest side, bicubic, no crop"),
        ({"size": {"longest_edge": 224}}, None, "another resize, bicubic"),
        ({"do_resize": False, "size": {"height": 96, "width": 96}}, None, "not resized"),
        ({"size": "x", "resample": [1]}, None, "shortest side, another interpolation, centre crop"),
        ({"do_resize": False, **CROP}, 224, "not resized, centre crop"),
    ],
)
def test_transformers(processor: dict[str, Any], size: int | None, how: str) -> None:
    assert of_transformers(processor) == (size and (size, size), how)


def test_open_clip() -> None:
    assert of_open_clip({}) == of_open_clip({"resize_mode": "shortest", "interpolation": "bicubic"}) == ""
    assert of_open_clip({"resize_mode": "squash", "interpolation": "bilinear"}) == "squash, bilinear"
    assert of_open_clip({"interpolation": "bilinear"}) == "shortest side, bilinear, centre crop"


def test_timm() -> None:
    def own(name: str) -> dict[str, Any]:
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        return config.to_dict()

    assert of_timm({}, 224) == ""
    assert of_timm(own("eva02_base_patch14_448.mim_in22k_ft_in22k_in1k"), 448) == "squash, bicubic"
    assert of_timm(own("resnet50.tv_in1k"), 224) == "shortest side, bilinear, centre crop of 87.5%"
    assert of_timm({"input_size": (3, 224, 224)}, 96) == "shortest side, bicubic, centre crop, 224 pixels"
