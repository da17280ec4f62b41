"""A folder for ``AutoModel.from_pretrained`` and ``AutoImageProcessor``, without code of ours in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import __version__ as transformers_version

from lcl_composer.errors import ConfigError
from lcl_composer.export.same import check_pixels, check_same, some_pixels
from lcl_composer.export.taken import Taken
from lcl_composer.export.timm import write_timm_folder
from lcl_composer.models.encoder import Encoder, patch_tokens_of_timm
from lcl_composer.models.open_clip_encoder import as_timm
from lcl_composer.models.transformers_encoder import TransformersEncoder

#: Makes transformers resize as Pillow does; from version 5 on its own choice is torchvision, which rounds
#: some pixels to the level of 255 beside.
_PILLOWS: dict[str, Any] = (
    {"use_fast": False} if int(transformers_version.split(".")[0]) < 5 else {"backend": "pil"}
)


@torch.no_grad()
def write_huggingface(taken: Taken, folder: Path) -> str:
    """Write the folder, read it by transformers, compare features and pixels; return how to use it.

    An encoder of timm goes into transformers' ``timm_wrapper`` layout, one of transformers into its own.

    Raises:
        ConfigError: If transformers has no counterpart of the encoder.
    """
    from transformers import AutoImageProcessor, AutoModel

    encoder = taken.encoder
    in_timm = as_timm(encoder)
    if isinstance(encoder, TransformersEncoder):
        encoder.backbone.save_pretrained(folder)
        image_processor(encoder).save_pretrained(folder)
    elif in_timm is not None:
        write_timm_folder(in_timm, folder)
    else:
        raise ConfigError(
            f"export: transformers has no counterpart of {type(encoder).__name__} ({encoder.source}); "
            "try --format onnx"
        )
    pixels = some_pixels(encoder)
    model: Any = AutoModel.from_pretrained(folder).eval()
    if in_timm is not None:
        found = patch_tokens_of_timm(model.timm_model, pixels)
        check_same("transformers", model(pixels).last_hidden_state, model.timm_model.forward_features(pixels))
    else:
        whole = model(pixel_values=pixels).last_hidden_state
        check_same("transformers", whole, encoder.backbone(pixel_values=pixels).last_hidden_state)
        found = whole[:, -encoder.tokens_per_image :]
    check_same("transformers", found, encoder(pixels))
    processor: Any = AutoImageProcessor.from_pretrained(folder, **(_PILLOWS if in_timm is None else {}))
    check_pixels(
        "transformers' image processor",
        lambda image: processor(image, return_tensors="pt")["pixel_values"],
        encoder,
    )
    return (
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{folder}")\n'
        f'model = AutoModel.from_pretrained("{folder}").eval()\n'
        'features = model(**processor(image, return_tensors="pt")).last_hidden_state'
    )


def image_processor(encoder: Encoder) -> Any:
    """transformers' image processor that does what :func:`lcl_composer.data.image.eval_transform` does."""
    from transformers import CLIPImageProcessor

    mean, std = encoder.normalize.channels
    side = encoder.image_size
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=Image.Resampling.BICUBIC,
        image_mean=mean,
        image_std=std,
    )
