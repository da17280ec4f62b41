"""OpenCLIP's folder, ``open_clip.create_model_and_transforms("local-dir:FOLDER")``, of the method clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lcl_composer.errors import ConfigError, DataError
from lcl_composer.export.same import check_pixels, check_same, some_pixels
from lcl_composer.export.taken import Taken
from lcl_composer.export.towers import check_texts, towers_config, whole_model
from lcl_composer.methods.method import Method
from lcl_composer.models.open_clip import to_open_clip

#: Rows of OpenCLIP's token embedding, the last of which ends a text; ours has the image tokens after them.
_VOCABULARY = 49_408


@torch.no_grad()
def write_open_clip(taken: Taken, folder: Path) -> str:
    """Write the folder, read it by OpenCLIP, compare features of both towers; return how to use it.

    Raises:
        ConfigError: If the model is not one that OpenCLIP has.
        DataError: If OpenCLIP makes other pixels, features or logits of the folder.
    """
    _check_fits(taken)
    try:
        state = to_open_clip(taken.state, _VOCABULARY)
    except DataError as error:
        raise ConfigError(f"export: {error}") from error
    ours = whole_model(taken)
    model = towers_config(ours, _VOCABULARY)
    if "logit_bias" in state:
        model["init_logit_bias"] = float(state["logit_bias"])
    preprocess = {**taken.encoder.normalize.settings, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(state, folder / "open_clip_model.safetensors", {"format": "pt"})
    _check_read_back(ours, folder)
    return (
        "import open_clip\n\n"
        f'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")\n'
        'tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=model.context_length)\n'
        "image_features = model.eval().encode_image(preprocess(image)[None])"
    )


def _check_read_back(ours: Method, folder: Path) -> None:
    """Raise DataError unless OpenCLIP makes of the folder what the run's own method makes."""
    import open_clip

    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    transform: Any = preprocess
    model: Any = theirs.eval()
    check_pixels("OpenCLIP", lambda image: transform(image)[None], ours.encoder)
    pixels = some_pixels(ours.encoder)
    check_same("OpenCLIP", model.encode_image(pixels), ours.image_features(pixels), "image features")
    check_texts(ours, _VOCABULARY - 1, model.context_length, model.encode_text)
    for name in ("logit_scale", *(["logit_bias"] if model.logit_bias is not None else [])):
        check_same("OpenCLIP", getattr(model, name), ours.get_parameter(name), name)


def _check_fits(taken: Taken) -> None:
    """Raise ConfigError, saying why, unless OpenCLIP has such a model."""
    reason = ""
    if not taken.state:
        reason = f"{taken.source} holds an encoder alone; name the run"
    elif taken.method != "clip":
        reason = (
            f"this one was trained by {taken.method or 'an unknown method'}; try --format timm, hf or onnx"
        )
    elif taken.pooler is not None:
        reason = (
            "this one has a pooler in the place of the projection; set model.pooler to null to train for it"
        )
    elif taken.settings["tokenizer"]["name"] != "clip":
        reason = (
            f"this one reads the tokens of {taken.settings['tokenizer']['name']!r}, OpenCLIP those of CLIP"
        )
    if reason:
        raise ConfigError(
            f"export: open_clip takes an image tower and a text tower of the method clip; {reason}"
        )
