"""Vision encoders: pixels to patch tokens, through timm or transformers by name."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from lcl_composer.errors import ConfigError


class PixelNormalizer(nn.Module):
    """uint8 pixels to zero mean and unit variance on the device; float pixels pass as already normalised."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = OPENAI_CLIP_MEAN, std: tuple[float, ...] = OPENAI_CLIP_STD):
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[I, 3, H, W] uint8 in 0..255 or normalised float -> [I, 3, H, W] float."""
        if pixel_values.dtype != torch.uint8:
            return pixel_values
        return (pixel_values.float() - self.mean) / self.std


class Encoder(nn.Module):
    """What the model asks of an encoder: ``width``, ``tokens_per_image``, ``image_size`` and a forward.

    Subclasses implement :meth:`tokens`. The count of tokens is read off a run on the meta device, so it is
    right for any architecture.
    """

    width: int
    image_size: int

    def __init__(self) -> None:
        super().__init__()
        self.normalize = PixelNormalizer()

    def tokens(self, pixels: Tensor) -> Tensor:
        """Patch tokens of normalised pixels: [I, 3, H, W] -> [I, K, width]; no class or register tokens."""
        raise TypeError(f"{type(self).__name__} has no tokens() method")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Patch tokens: [I, 3, H, W] uint8 or normalised float -> [I, K, width]."""
        return self.tokens(self.normalize(pixel_values))


class TimmEncoder(Encoder):
    """Any timm model whose features are a token sequence or a feature map.

    Args:
        model_name: timm's name, such as ``vit_base_patch32_clip_224`` (OpenCLIP's layout).
        image_size: Side of the square input in pixels.
        pretrained: Load timm's weights (from its hub or the local cache) instead of a random start.
        gradient_checkpointing: Recompute activations in the backward.
        model_args: Further arguments of the timm model, such as ``{depth: 4, embed_dim: 128}``.

    Raises:
        ConfigError: If timm knows no such model or refuses an argument.
    """

    def __init__(
        self,
        model_name: str,
        image_size: int = 224,
        pretrained: bool = False,
        gradient_checkpointing: bool = False,
        model_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.model_name, self.image_size, self.model_args = model_name, image_size, dict(model_args or {})
        self.backbone = _create_timm(model_name, image_size, pretrained, self.model_args)
        self.width = self.backbone.num_features
        self.tokens_per_image = _count_timm_tokens(model_name, image_size, self.model_args)
        if gradient_checkpointing:
            self.backbone.set_grad_checkpointing(True)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, H, W] -> patch tokens [I, K, width] after the final norm."""
        return _timm_tokens(self.backbone, pixels)


def _timm_tokens(backbone: Any, pixels: Tensor) -> Tensor:
    """Patch tokens [I, K, width] of a timm backbone, whatever the layout of its features."""
    features = backbone.forward_features(pixels)
    if features.dim() == 4:  # a feature map: timm's ConvNets give [I, C, h, w], its Swins [I, h, w, C]
        channels_first = features.shape[1] == backbone.num_features
        return features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)
    return features[:, getattr(backbone, "num_prefix_tokens", 0) :]


def _create_timm(model_name: str, image_size: int, pretrained: bool, model_args: dict[str, Any]) -> Any:
    """Create the bare timm backbone; see :class:`TimmEncoder` for the errors."""
    if not timm.is_model(model_name):
        close = ", ".join(timm.list_models(f"*{model_name[:12]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"model.encoder.model_name: timm has no model {model_name!r}; close names: {close}")
    sized = {"img_size": image_size} if model_name.startswith(("vit", "deit", "eva", "beit", "swin")) else {}
    try:
        return timm.create_model(
            model_name, pretrained=pretrained, num_classes=0, global_pool="", **sized, **model_args
        )
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.encoder: timm could not build {model_name!r}: {error}") from error


def _count_timm_tokens(model_name: str, image_size: int, model_args: dict[str, Any]) -> int:
    """Patch tokens K an image of a timm model, from its forward on the meta device."""
    with torch.device("meta"):
        backbone = _create_timm(model_name, image_size, False, model_args)
        return _timm_tokens(backbone, torch.empty(1, 3, image_size, image_size)).shape[1]


class TransformersEncoder(Encoder):
    """A vision model of transformers, from its config or from pretrained weights.

    Args:
        model_type: transformers' name of the architecture, such as ``siglip_vision_model`` or ``dinov2``.
        image_size: Side of the square input in pixels.
        pretrained: A hub name or a folder to take weights from; None starts at random.
        gradient_checkpointing: Recompute activations in the backward.
        model_args: Further fields of the architecture's config, such as ``{hidden_size: 768}``.

    Raises:
        ConfigError: If transformers knows no such architecture or the output is no token sequence.
    """

    def __init__(
        self,
        model_type: str,
        image_size: int = 224,
        pretrained: str | None = None,
        gradient_checkpointing: bool = False,
        model_args: dict[str, Any] | None = None,
    ):
        from transformers import AutoConfig, AutoModel

        super().__init__()
        try:
            if pretrained:
                self.backbone = AutoModel.from_pretrained(pretrained)
            else:
                config = AutoConfig.for_model(model_type, image_size=image_size, **(model_args or {}))
                self.backbone = AutoModel.from_config(config)
        except (ValueError, OSError) as error:
            raise ConfigError(f"model.encoder: transformers cannot build {model_type!r}: {error}") from error
        if self.backbone.config.image_size != image_size:
            size = self.backbone.config.image_size
            raise ConfigError(f"model.encoder.image_size is {image_size}, but {pretrained!r} takes {size}")
        self.image_size, self.width = image_size, self.backbone.config.hidden_size
        patch = getattr(self.backbone.config, "patch_size", None)
        if not isinstance(patch, int):
            raise ConfigError(
                f"model.encoder: {model_type!r} has no patch_size; only vision transformers are supported"
            )
        self.tokens_per_image = (image_size // patch) ** 2
        if gradient_checkpointing:
            self.backbone.gradient_checkpointing_enable({"use_reentrant": False})

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, H, W] -> patch tokens [I, K, width]; class and register tokens dropped."""
        return self.backbone(pixel_values=pixels).last_hidden_state[:, -self.tokens_per_image :]
