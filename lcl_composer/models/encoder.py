"""Vision encoders: pixels to patch tokens, through timm by name, and what every encoder has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from lcl_composer.errors import ConfigError, did_you_mean, one_line
from lcl_composer.models.finite import check_finite
from lcl_composer.models.preprocessing import of_timm
from lcl_composer.models.weights import digest_of_weights, no_memory

#: One value a channel of RGB pixels in 0..1.
Channels = tuple[float, float, float]

#: The norms that a transformer or a ConvNeXt may end in; a BatchNorm inside a block is none of them.
_NORMS = ("layernorm", "rmsnorm", "groupnorm")


class PixelNormalizer(nn.Module):
    """uint8 pixels to zero mean and unit variance on the device; float pixels pass as already normalised.

    Args:
        mean: Of each channel, in 0..1.
        std: The same.

    Raises:
        ConfigError: If these are not three numbers each, or a standard deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = OPENAI_CLIP_MEAN, std: Sequence[float] = OPENAI_CLIP_STD):
        super().__init__()
        if not _are_three(mean) or not _are_three(std) or min(std) <= 0:
            raise ConfigError(
                f"model.encoder: pixels cannot be normalised by mean {_shown(mean)} and std {_shown(std)}; "
                "each takes three numbers (RGB, pixels in 0..1), and std is above 0"
            )
        self.channels = (list(mean), list(std))
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def settings(self) -> dict[str, list[float]]:
        """``mean`` and ``std`` as an encoder's settings."""
        return dict(zip(("mean", "std"), self.channels, strict=True))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[I, 3, H, W] uint8 in 0..255 or normalised float -> [I, 3, H, W] float.

        Under autocast to bfloat16 it is that, rounded once, with the channels last: one kernel reads bytes
        and writes what the patch embedding reads, where a copy in float would be twice as large.
        """
        if pixel_values.dtype != torch.uint8:
            return pixel_values
        kind = pixel_values.device.type
        if (
            kind != "meta"
            and torch.is_autocast_enabled(kind)
            and torch.get_autocast_dtype(kind) == torch.bfloat16
        ):
            normalised = torch.empty_like(
                pixel_values, dtype=torch.bfloat16, memory_format=torch.channels_last
            )
            return torch.addcmul(-self.mean / self.std, pixel_values, 1 / self.std, out=normalised)
        return (pixel_values.float() - self.mean) / self.std


def _are_three(values: Any) -> bool:
    """Whether these are a finite number for each channel; they may come from a file of another library."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _shown(values: Any) -> Any:
    return list(values) if isinstance(values, tuple) else values


class Encoder(nn.Module):
    """What the model asks of an encoder: ``width``, ``tokens_per_image``, ``image_size`` and a forward.

    Subclasses build ``backbone``, say its ``recipe`` and ``source``, and implement :meth:`tokens_of`.

    Args:
        image_size: Side of the square input in pixels.
        mean: Of each channel of the pixels in 0..1, as the weights were trained on.
        std: The same.
    """

    backbone: Any
    width: int
    tokens_per_image: int
    #: ``{name: ..., **parameters}`` that builds the same architecture anywhere, without the weights.
    recipe: dict[str, Any]
    #: Where it came from, for people.
    source: str
    #: Digest of the weights that it came with; "": it started at random.
    weights: str = ""
    #: Whether the patch tokens are those after the last layer's norm.
    final_norm: bool
    #: How its own images are brought to size, where that is not how ours are.
    own_resize: str = ""
    #: What ``timm.create_model`` made the backbone of; None: it is of another library.
    timm_args: dict[str, Any] | None = None

    def __init__(
        self, image_size: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.normalize = PixelNormalizer(mean or OPENAI_CLIP_MEAN, std or OPENAI_CLIP_STD)
        self.image_size = image_size

    @property
    def description(self) -> dict[str, Any]:
        """What is read off which encoder, as JSON values: it stands in every result."""
        mean, std = self.normalize.channels
        norm = "after its final norm" if self.final_norm else "with no norm after it"
        own = f" (its own: {self.own_resize})" if self.own_resize else ""
        return {
            "encoder": self.source,
            "weights": self.weights or None,
            "features": f"patch tokens of the last layer, {norm}, without a class token",
            "tokens_per_image": self.tokens_per_image,
            "width": self.width,
            "image_size": self.image_size,
            "resize": f"shortest side, bicubic, centre crop{own}",
            "mean": mean,
            "std": std,
        }

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
        normed: list[Any] = []
        for module in twin.modules():
            if any(norm in type(module).__name__.lower() for norm in _NORMS):
                module.register_forward_hook(lambda _module, _inputs, output: normed.append(output))
        with torch.device("meta"), torch.enable_grad():
            tokens = self.tokens_of(twin, torch.empty(1, 3, self.image_size, self.image_size))
            gradients = torch.autograd.grad(tokens.sum(), list(twin.parameters()), allow_unused=True)
        self.tokens_per_image, self.width = tokens.shape[1:]
        self.final_norm = any(_same_memory(output, tokens) for output in normed)
        for parameter, gradient in zip(self.backbone.parameters(), gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def came_with_weights(self, where: str) -> None:
        """Note that the backbone's weights came from elsewhere.

        Raises:
            DataError: If one is not finite.
        """
        check_finite(where, self.backbone.state_dict(), "take other weights")
        self.weights = digest_of_weights(self.backbone)


def in_a_line(about: Mapping[str, Any]) -> str:
    """What is read off an encoder and how it takes its images, from its :attr:`Encoder.description`."""
    mean, std = (", ".join(f"{value:.3g}" for value in about[key]) for key in ("mean", "std"))
    weights = f"weights {about['weights'][:12]}" if about["weights"] else "random weights"
    return (
        f"{about['encoder']}, {weights}; {about['tokens_per_image']} x {about['width']} {about['features']}; "
        f"{about['image_size']} pixels, {about['resize']}, normalised by ({mean}) and ({std})"
    )


def _same_memory(one: Any, other: Tensor) -> bool:
    """Whether one is the other or a view of it."""
    return isinstance(one, Tensor) and one.untyped_storage()._cdata == other.untyped_storage()._cdata


def patch_tokens_of_timm(backbone: Any, pixels: Tensor) -> Tensor:
    """Normalised pixels [I, 3, H, W] -> patch tokens [I, K, width] of any model of timm."""
    features = backbone.forward_features(pixels)
    if features.dim() == 4:  # a feature map: timm's ConvNets give [I, C, h, w], its Swins [I, h, w, C]
        channels_first = features.shape[1] == backbone.num_features
        return features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)
    return features[:, getattr(backbone, "num_prefix_tokens", 0) :]


class TimmEncoder(Encoder):
    """Any timm model whose features are a token sequence or a feature map.

    Args:
        model_name: timm's name, such as ``vit_base_patch32_clip_224`` (OpenCLIP's layout).
        image_size: Side of the square input in pixels.
        pretrained: Load timm's weights (from its hub or the local cache) instead of a random start.
        model_args: Further arguments of the timm model, such as ``{depth: 4, embed_dim: 128}``.
        mean: What pixels are normalised by; null: as timm's weights if ``pretrained``, else as CLIP.
        std: The same.

    Raises:
        ConfigError: If timm knows no such model or refuses an argument.
    """

    def __init__(
        self,
        model_name: str,
        image_size: int = 224,
        pretrained: bool = False,
        model_args: dict[str, Any] | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ):
        wanted = pretrained and not no_memory()
        backbone, timm_args = _create_timm(model_name, image_size, wanted, model_args or {})
        own: dict[str, Any] = backbone.pretrained_cfg if pretrained else {}
        super().__init__(image_size, mean or own.get("mean"), std or own.get("std"))
        self.own_resize = of_timm(own, image_size)
        self.backbone, self.timm_args, self.source = backbone, timm_args, f"timm's {model_name}"
        sizes = {"model_name": model_name, "image_size": image_size, "model_args": model_args or {}}
        self.recipe = {"name": "timm", **sizes, **self.normalize.settings}
        with torch.device("meta"):
            twin, _ = _create_timm(model_name, image_size, False, model_args or {})
        try:
            self._inspect(twin)
        except Exception as error:  # each architecture fails in its own way at a size that is not its own
            raise ConfigError(
                f"model.encoder: timm's {model_name!r} gives no patch tokens of {image_size} pixels "
                f"({one_line(error)}); its own size is {twin.default_cfg['input_size'][-1]}"
            ) from error
        if wanted:
            self.came_with_weights(f"timm's weights of {model_name}")

    def tokens_of(self, backbone: Any, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, H, W] -> patch tokens [I, K, width]."""
        return patch_tokens_of_timm(backbone, pixels)

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


#: What ``timm.create_model`` takes besides the architecture: files and addresses that it reads weights from.
_NOT_OF_THE_MODEL = {
    "cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_model_args",
}  # fmt: skip


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
    if foreign := sorted(_NOT_OF_THE_MODEL & model_args.keys()):
        raise ConfigError(
            f"model.encoder.model_args: {foreign[0]} is no argument of the architecture; weights come by "
            "pretrained: true, or from an encoder of another name (exported, open_clip)"
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
