"""How the images of pretrained weights were brought to size, as each library writes it down.

Ours are resized by the shortest side with bicubic interpolation, then cropped in the centre. Weights that saw
theirs otherwise are read all the same, and the difference is said with every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

#: PIL's numbers of its filters, by which transformers names them.
_FILTERS = {str(filter.value): filter.name.lower() for filter in Image.Resampling}

_SHORTEST, _CROP = "shortest side", "centre crop"


def of_open_clip(preprocess: Mapping[str, Any]) -> str:
    """What OpenCLIP's ``preprocess_cfg`` does to an image, where that is not what is done here; else ""."""
    mode = preprocess.get("resize_mode") or "shortest"
    return _unlike_ours(
        mode=_SHORTEST if mode == "shortest" else mode,
        interpolation=preprocess.get("interpolation") or "bicubic",
        crop=_CROP if mode == "shortest" else "",
    )


def of_timm(pretrained: Mapping[str, Any], image_size: int) -> str:
    """What timm's ``pretrained_cfg`` does to an image, where that is not what is done here; else "".

    Args:
        pretrained: Of the weights.
        image_size: Side of the images here, in pixels.
    """
    mode, share = pretrained.get("crop_mode") or "center", pretrained.get("crop_pct") or 1.0
    size = (pretrained.get("input_size") or (3, image_size, image_size))[-1]
    crop = f"{_CROP} of {share:.1%}" if share < 1 else _CROP if mode == "center" else ""
    return _unlike_ours(
        mode={"center": _SHORTEST, "border": "longest side"}.get(mode, mode),
        interpolation=pretrained.get("interpolation") or "bicubic",
        crop=crop if size == image_size else ", ".join(filter(None, (crop, f"{size} pixels"))),
    )


def of_transformers(processor: Mapping[str, Any]) -> tuple[tuple[int, int] | None, str]:
    """What an image processor of transformers does to an image.

    Args:
        processor: Its ``preprocessor_config.json``.

    Returns:
        Height and width that come out in pixels, None where they are not said, and how, "" where that is what
        is done here.
    """
    crops = bool(processor.get("do_center_crop", False))
    # A plain number is the shortest side for processors that crop, and both sides for those that do not.
    resized = _sides(processor.get("size"), shortest=crops)
    cropped = _sides(processor.get("crop_size"), shortest=False) if crops else {}
    if not processor.get("do_resize", True):
        return _both(cropped), ", ".join(["not resized", *([_CROP] if crops else [])])
    before, after = _both(resized), _both(cropped or resized)
    keeps_shape = not resized or "shortest_edge" in resized
    mode = _SHORTEST if keeps_shape else "squash" if before else "another resize"
    crop = _CROP if crops or not resized else "no crop" if keeps_shape else ""
    if before and after and before != after:
        mode, crop = f"{mode} to {before[0]} pixels", f"{_CROP} of {after[0]}"
    return after, _unlike_ours(
        mode, _FILTERS.get(str(processor.get("resample", 3)), "another interpolation"), crop
    )


def _unlike_ours(mode: str, interpolation: str, crop: str) -> str:
    how = (mode, interpolation, crop)
    return "" if how == (_SHORTEST, "bicubic", _CROP) else ", ".join(str(part) for part in how if part)


def _sides(size: Any, shortest: bool) -> Mapping[str, Any]:
    """A size in transformers' newer form; empty where there is none."""
    if isinstance(size, Mapping):
        return size
    if isinstance(size, list | tuple) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    if isinstance(size, int):
        return {"shortest_edge": size} if shortest else {"height": size, "width": size}
    return {}


def _both(sides: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width; of an image that is cropped to a square, its shortest side twice."""
    shortest = sides.get("shortest_edge")
    height, width = sides.get("height", shortest), sides.get("width", shortest)
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
