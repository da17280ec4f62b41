"""Vision transformers of transformers, from their config or from pretrained weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lcl_composer.errors import ConfigError, DataError, did_you_mean, one_line
from lcl_composer.models.encoder import Channels, Encoder
from lcl_composer.models.preprocessing import of_transformers
from lcl_composer.models.weights import no_memory

#: Fields of a config that say where it came from, not what is built of it.
_PROVENANCE = {"_name_or_path", "architectures", "image_size", "model_type", "torch_dtype", "dtype"}
_PROVENANCE |= {"transformers_version", "_attn_implementation_autoset"}


class TransformersEncoder(Encoder):
    """A vision transformer of transformers, from its config or from pretrained weights.

    Patch tokens are the last ones of ``last_hidden_state``: for ``clip_vision_model`` and ``vit_mae`` those
    before the final norm, as transformers defines it.

    Args:
        model_type: transformers' name of the architecture, such as ``siglip_vision_model`` or ``dinov2``.
        image_size: Side of the square input in pixels.
        pretrained: A hub name or a folder to take architecture and weights from; None starts at random. Of
            a model with a text tower the vision tower is taken.
        model_args: Further fields of the architecture's config, such as ``{hidden_size: 768}``.
        mean: What pixels are normalised by; null: as the pretrained weights' image processor, else as CLIP.
            With ``std`` it overrules the processor.
        std: The same.

    Raises:
        ConfigError: If transformers knows no such architecture or field, it has no patches, or how its
            images are prepared is unknown or not what is done here.
        DataError: If the pretrained weights are damaged or of another architecture.
    """

    def __init__(
        self,
        model_type: str,
        image_size: int = 224,
        pretrained: str | None = None,
        model_args: dict[str, Any] | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ):
        from transformers import AutoModel

        config = _transformers_config(model_type, image_size, pretrained, model_args or {})
        own_resize = ""
        if pretrained:
            by_config = mean is not None and std is not None
            processor = _read_processor(pretrained, by_config)
            own_resize = _own_resize(pretrained, processor, image_size, by_config)
            if not by_config:
                own_mean, own_std = _own_normalisation(pretrained, processor)
                mean, std = mean or own_mean, std or own_std
        super().__init__(image_size, mean, std)
        self.own_resize = own_resize
        self.source = f"transformers' {model_type}" + (f" from {pretrained}" if pretrained else "")
        fields = model_args or {}
        if pretrained:
            fields = {k: v for k, v in config.to_diff_dict().items() if k not in _PROVENANCE}
        recipe = {"name": "transformers", "model_type": model_type, "image_size": image_size}
        self.recipe = {**recipe, "model_args": fields, **self.normalize.settings}
        build = AutoModel.from_config
        missing: list[str] = []
        try:
            if pretrained and not no_memory():
                self.backbone, report = AutoModel.from_pretrained(
                    pretrained, config=config, output_loading_info=True, trust_remote_code=False
                )
                missing = report["missing_keys"]
            else:
                self.backbone = build(config)
            with torch.device("meta"):
                self._inspect(build(config))
        except Exception as error:  # each architecture refuses in its own way
            raise ConfigError(
                f"model.encoder: transformers cannot build {config.model_type!r}: {one_line(error)}"
            ) from error
        if pretrained and not no_memory():
            self._check_complete(pretrained, missing)

    def _check_complete(self, pretrained: str, missing: list[str]) -> None:
        """Raise DataError if a weight that the tokens depend on was not in the folder, or is not finite."""
        trained = {name for name, p in self.backbone.named_parameters() if p.requires_grad}
        if absent := sorted(trained & set(missing)):
            raise DataError(
                f"model.encoder.pretrained: {pretrained!r} lacks {len(absent)} tensors of "
                f"{self.backbone.config.model_type} ({absent[0]!r}); they would be random"
            )
        self.came_with_weights(f"weights {pretrained}")

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
        if pretrained:
            config = AutoConfig.from_pretrained(pretrained, trust_remote_code=False)
        else:
            config = AutoConfig.for_model(model_type)
        config = getattr(config, "vision_config", config)
        known = config.to_dict()
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"model.encoder: transformers cannot build {model_type!r}: {one_line(error)}"
        ) from error
    except (AttributeError, LookupError, TypeError) as error:  # JSON of another form
        raise ConfigError(
            f"model.encoder.pretrained: the config.json of {pretrained!r} is damaged ({one_line(error)}); "
            "copy the folder anew"
        ) from error
    if not isinstance(known.get("patch_size"), int):
        raise ConfigError(
            f"model.encoder: {config.model_type!r} is no vision transformer with patches; try dinov2, or timm"
        )
    if config.model_type != model_type:
        raise ConfigError(
            f"model.encoder.model_type is {model_type}, but {pretrained!r} holds a {config.model_type}"
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


def _read_processor(pretrained: str, may_lack: bool) -> dict[str, Any]:
    """The settings of the image processor that lies beside pretrained weights.

    Raises:
        ConfigError: If there is none and it must not lack.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        found = BaseImageProcessor.get_image_processor_dict(pretrained)[0]
        return found if isinstance(found, dict) else {}
    except (AttributeError, LookupError, TypeError) as error:  # JSON of another form
        raise ConfigError(
            f"model.encoder.pretrained: the preprocessor_config.json of {pretrained!r} is damaged "
            f"({one_line(error)}); copy the folder anew"
        ) from error
    except (OSError, ValueError) as error:
        if may_lack:
            return {}
        raise ConfigError(
            f"model.encoder.pretrained: {pretrained!r} has no preprocessor_config.json that says how its "
            "pixels are normalised; set model.encoder.mean and model.encoder.std"
        ) from error


def _own_resize(pretrained: str, processor: dict[str, Any], image_size: int, by_config: bool) -> str:
    """How the weights' own images are brought to size, "" if as ours.

    Raises:
        ConfigError: If they come out at another size, and the settings do not overrule the processor.
    """
    size, how = of_transformers(processor)
    if size in (None, (image_size, image_size)):
        return how
    shown = size[0] if size[0] == size[1] else f"{size[0]} x {size[1]}"
    if not by_config:
        raise ConfigError(
            f"model.encoder.image_size is {image_size}, but the preprocessor_config.json of {pretrained!r} "
            f"gives {shown} pixels; mend it, or set model.encoder.mean and model.encoder.std to go without it"
        )
    return ", ".join(filter(None, (how, f"{shown} pixels")))


def _own_normalisation(pretrained: str, processor: dict[str, Any]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of an image processor.

    Raises:
        ConfigError: If it has none, or does what cannot be done here.
    """
    rescale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if not isinstance(rescale, int | float):
        raise ConfigError(
            f"model.encoder.pretrained: the image processor of {pretrained!r} rescales by {rescale!r}, which "
            "is no number; copy the folder anew, or set model.encoder.mean and model.encoder.std"
        )
    if abs(255 * rescale - 1) > 1e-3:
        raise ConfigError(
            f"model.encoder.pretrained: {pretrained!r} wants pixels times {rescale:g}, here they are in 0..1 "
            "before mean and std; set model.encoder.mean and model.encoder.std to what that amounts to"
        )
    if not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        return tuple(processor["image_mean"]), tuple(processor["image_std"])
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"model.encoder.pretrained: the image processor of {pretrained!r} names no image_mean and "
            "image_std; set model.encoder.mean and model.encoder.std"
        ) from error
