"""Vision encoders: pixels to patch tokens, through timm or transformers by name."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from lcl_composer.errors import ConfigError, did_you_mean, one_line


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

    Subclasses build ``backbone`` and implement :meth:`tokens_of`.
    """

    backbone: Any
    width: int
    tokens_per_image: int
    #: What ``timm.create_model`` made the backbone of; None: it is of another library.
    timm_args: dict[str, Any] | None = None

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.normalize = PixelNormalizer()
        self.image_size = image_size

    def tokens_of(self, backbone: Any, pixels: Tensor) -> Tensor:
        """Patch tokens of normalised pixels: [I, 3, H, W] -> [I, K, width]; no class or register tokens."""
        raise TypeError(f"{type(self).__name__} has no tokens_of() method")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Patch tokens: [I, 3, H, W] uint8 or normalised float -> [I, K, width]."""
        return self.tokens_of(self.backbone, self.normalize(pixel_values))

    def check_class_token(self) -> None:
        """Raise ConfigError if the encoder has no class token."""
        raise ConfigError(
            f"model.encoder: {type(self).__name__} gives no class token; set model.pooler instead"
        )

    def class_tokens(self, pixel_values: Tensor) -> Tensor:
        """Class token after the final norm: [I, 3, H, W] uint8 or normalised float -> [I, width]."""
        raise TypeError(f"{type(self).__name__} has no class_tokens() method")

    def _inspect(self, twin: nn.Module) -> None:
        """Read the shape of the tokens off a twin of the backbone on the meta device.

        What the tokens do not depend on, such as CLIP's norm of the class token, is frozen: a parameter that
        never gets a gradient stops DDP.
        """
        twin.eval()  # in training BatchNorm refuses the one value that a small image leaves a channel
        with torch.device("meta"), torch.enable_grad():
            tokens = self.tokens_of(twin, torch.empty(1, 3, self.image_size, self.image_size))
            gradients = torch.autograd.grad(tokens.sum(), list(twin.parameters()), allow_unused=True)
        self.tokens_per_image, self.width = tokens.shape[1:]
        for parameter, gradient in zip(self.backbone.parameters(), gradients, strict=True):
            parameter.requires_grad_(gradient is not None)


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
        super().__init__(image_size)
        wanted = pretrained and not torch.empty(0).is_meta  # no memory to put weights into
        self.backbone, self.timm_args = _create_timm(model_name, image_size, wanted, model_args or {})
        with torch.device("meta"):
            twin, _ = _create_timm(model_name, image_size, False, model_args or {})
        try:
            self._inspect(twin)
        except Exception as error:  # each architecture fails in its own way at a size that is not its own
            raise ConfigError(
                f"model.encoder: timm's {model_name!r} gives no patch tokens of {image_size} pixels "
                f"({one_line(error)}); its own size is {twin.default_cfg['input_size'][-1]}"
            ) from error
        if gradient_checkpointing:
            self.backbone.set_grad_checkpointing(True)

    def tokens_of(self, backbone: Any, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, H, W] -> patch tokens [I, K, width], in any layout of features."""
        features = backbone.forward_features(pixels)
        if features.dim() == 4:  # a feature map: timm's ConvNets give [I, C, h, w], its Swins [I, h, w, C]
            channels_first = features.shape[1] == backbone.num_features
            return features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)
        return features[:, getattr(backbone, "num_prefix_tokens", 0) :]

    def check_class_token(self) -> None:
        """Raise ConfigError if the backbone has no class token."""
        if not getattr(self.backbone, "has_class_token", False):
            raise ConfigError(
                f"model.encoder: timm's {type(self.backbone).__name__} has no class token here; "
                "set model.pooler instead"
            )

    def class_tokens(self, pixel_values: Tensor) -> Tensor:
        """Class token after the final norm: [I, 3, H, W] uint8 or normalised float -> [I, width]."""
        return self.backbone.forward_features(self.normalize(pixel_values))[:, 0]


def _create_timm(
    model_name: str, image_size: int, pretrained: bool, model_args: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Create the bare timm backbone; return it and the arguments that ``timm.create_model`` made it of.

    See :class:`TimmEncoder` for the errors.
    """
    if not timm.is_model(model_name):
        raise ConfigError(
            f"model.encoder.model_name: timm has no model {model_name!r}; "
            + (did_you_mean(model_name, timm.list_models()) if model_name else "see timm.list_models()")
        )
    bare = {"model_name": model_name, "num_classes": 0, "global_pool": "", **model_args}
    sized = {**bare, "img_size": image_size}
    try:
        try:
            return timm.create_model(pretrained=pretrained, **sized), sized
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(pretrained=pretrained, **bare), bare  # a ConvNet takes any size
    except Exception as error:  # each architecture refuses in its own way
        raise ConfigError(f"model.encoder: timm could not build {model_name!r}: {one_line(error)}") from error


class TransformersEncoder(Encoder):
    """A vision transformer of transformers, from its config or from pretrained weights.

    Args:
        model_type: transformers' name of the architecture, such as ``siglip_vision_model`` or ``dinov2``.
        image_size: Side of the square input in pixels.
        pretrained: A hub name or a folder to take architecture and weights from; None starts at random.
        gradient_checkpointing: Recompute activations in the backward.
        model_args: Further fields of the architecture's config, such as ``{hidden_size: 768}``.

    Raises:
        ConfigError: If transformers knows no such architecture or field, or it has no patches.
    """

    def __init__(
        self,
        model_type: str,
        image_size: int = 224,
        pretrained: str | None = None,
        gradient_checkpointing: bool = False,
        model_args: dict[str, Any] | None = None,
    ):
        from transformers import AutoModel

        super().__init__(image_size)
        config = _transformers_config(model_type, image_size, pretrained, model_args or {})
        build = AutoModel.from_config
        try:
            self.backbone = (
                AutoModel.from_pretrained(pretrained, config=config) if pretrained else build(config)
            )
            with torch.device("meta"):
                self._inspect(build(config))
        except Exception as error:  # each architecture refuses in its own way
            raise ConfigError(
                f"model.encoder: transformers cannot build {config.model_type!r}: {one_line(error)}"
            ) from error
        if gradient_checkpointing:
            self.backbone.gradient_checkpointing_enable({"use_reentrant": False})

    def tokens_of(self, backbone: Any, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, H, W] -> patch tokens [I, K, width], which are the last ones."""
        count = (self.image_size // backbone.config.patch_size) ** 2
        return backbone(pixel_values=pixels).last_hidden_state[:, -count:]


def _transformers_config(
    model_type: str, image_size: int, pretrained: str | None, model_args: dict[str, Any]
) -> Any:
    """The config of a vision transformer; see :class:`TransformersEncoder` for the errors."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(pretrained) if pretrained else AutoConfig.for_model(model_type)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"model.encoder: transformers cannot build {model_type!r}: {one_line(error)}"
        ) from error
    known = config.to_dict()
    if not isinstance(known.get("patch_size"), int):
        raise ConfigError(
            f"model.encoder: {config.model_type!r} is no vision transformer with patches; try dinov2, or timm"
        )
    if unknown := sorted(set(model_args) - set(known)):
        raise ConfigError(
            f"model.encoder.model_args: {config.model_type} has no field {unknown[0]!r}; "
            + did_you_mean(unknown[0], known)
        )
    if not pretrained:
        return AutoConfig.for_model(model_type, **{"image_size": image_size, **model_args})
    config.update(model_args)
    if config.image_size != image_size:
        raise ConfigError(
            f"model.encoder.image_size is {image_size}, but {pretrained!r} takes {config.image_size}"
        )
    return config
