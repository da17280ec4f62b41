"""The image tower of an OpenCLIP model, or of the authors' release of LCL, which has the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from lcl_composer.errors import ConfigError, DataError, did_you_mean, one_line
from lcl_composer.json_data import load_json
from lcl_composer.models.encoder import Channels, Encoder, TimmEncoder, patch_tokens_of_timm
from lcl_composer.models.preprocessing import of_open_clip
from lcl_composer.models.released import from_released
from lcl_composer.models.weights import load_strictly, no_memory, read_state

#: Weights in a folder that OpenCLIP wrote (``open_clip.push_to_hf_hub``), the safest first.
_FOLDER_CONFIG = "open_clip_config.json"
_FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

#: What of the image tower stands behind the patch tokens: never computed here, and not loaded.
_HEADS = ("proj", "attn_pool.", "attn_pool_contrastive.", "attnpool.")


class OpenCLIPEncoder(Encoder):
    """The image tower of an OpenCLIP model: a ViT, a ResNet, or a timm model.

    A ViT's patch tokens are those after ``ln_post``, as ``output_tokens`` gives them; where ``ln_post``
    stands behind a pooling (``final_ln_after_pool``, ``attentional_pool``), those of the last layer. Of the
    authors' release of LCL give the model config and the checkpoint.

    Args:
        model: OpenCLIP's name of a model, such as ``ViT-B-16``; the path of a JSON file in the form of its
            model configs; or a folder with ``open_clip_config.json``. A mapping of such a form serves too.
        weights: A local ``.pt`` or ``.safetensors`` of the whole model; null: what lies in the folder, and
            without a folder random weights.
        mean: What pixels are normalised by; null: what ``open_clip_config.json`` says, or what all published
            weights of that name agree on, or CLIP's.
        std: The same.

    Raises:
        ConfigError: If there is no such model, or its images are prepared as cannot be done here.
        DataError: If a file is missing, damaged, not finite, or of another architecture.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        weights: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ):
        name = model if isinstance(model, str) else "a config"
        config, preprocess, found = _read_model(model)
        size = _square(config["vision_cfg"].get("image_size", 224), name)
        if _square(preprocess.get("size", size), name) != size:
            raise ConfigError(
                f"model.encoder.model: {name}: its preprocessing gives {preprocess['size']} pixels, its "
                f"vision_cfg takes {size}"
            )
        super().__init__(size, mean or preprocess.get("mean"), std or preprocess.get("std"))
        self.own_resize = of_open_clip(preprocess)
        weights = weights or found
        self.source = f"OpenCLIP's {name}" + (f" with {weights}" if weights else "")
        self.recipe = {"name": "open_clip", "model": config, **self.normalize.settings}
        self.backbone = _build_tower(config, name)
        with torch.device("meta"):
            twin = _build_tower(config, name)
        try:
            self._inspect(twin)
        except Exception as error:  # each architecture fails in its own way at a size that is not its own
            raise ConfigError(
                f"model.encoder: OpenCLIP's {name} gives no patch tokens of {size} pixels: {one_line(error)}"
            ) from error
        if weights and not no_memory():
            self._load(Path(weights))

    def _load(self, path: Path) -> None:
        """Load the image tower's weights of a whole model."""
        prefix, unread = "visual.trunk.", tuple[str, ...]()
        if not hasattr(self.backbone, "forward_features"):
            prefix, unread = "visual.", _HEADS
            if isinstance(getattr(self.backbone, "ln_post", None), nn.Identity):
                unread = (*_HEADS, "ln_post.")
        tower = {n.removeprefix(prefix): t for n, t in read_state(path).items() if n.startswith(prefix)}
        if not tower:
            raise DataError(f"weights {path}: no tensor {prefix}*; is it a checkpoint of OpenCLIP or of LCL?")
        state = {name: tensor for name, tensor in tower.items() if not name.startswith(unread)}
        load_strictly(self.backbone, state, f"weights {path}")
        self.came_with_weights(f"weights {path}")

    def tokens_of(self, backbone: Any, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, H, W] -> patch tokens [I, K, width]."""
        if hasattr(backbone, "forward_features"):
            return patch_tokens_of_timm(backbone, pixels)
        if hasattr(backbone, "layer4"):
            return backbone(pixels).flatten(2).transpose(1, 2)
        return _sequence(backbone, pixels)[:, 1:]

    def check_class_token(self) -> None:
        """Raise ConfigError unless the tower is a ViT whose class token passes the final norm."""
        if not hasattr(self.backbone, "class_embedding") or not self.final_norm:
            raise ConfigError(
                f"model.encoder: {self.source} has no class token after a norm; set model.pooler instead"
            )

    def class_tokens(self, pixel_values: Tensor) -> Tensor:
        """Class token after the final norm: [I, 3, H, W] uint8 or normalised float -> [I, width]."""
        return _sequence(self.backbone, self.normalize(pixel_values))[:, 0]


def _sequence(tower: Any, pixels: Tensor) -> Tensor:
    """Class token and patch tokens [I, 1 + K, width] of OpenCLIP's ViT."""
    return tower.ln_post(tower.transformer(tower._embeds(pixels)))


def _read_model(model: str | dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """What is to be built (the image tower's part), how its images are prepared, and weights beside it."""
    weights = None
    if isinstance(model, dict):
        config: Any = model
    elif model.endswith(".json") or Path(model).is_dir():
        path = Path(model) / _FOLDER_CONFIG if Path(model).is_dir() else Path(model)
        beside = [path.parent / name for name in _FOLDER_WEIGHTS] if Path(model).is_dir() else []
        weights = next((str(file) for file in beside if file.is_file()), None)
        if beside and weights is None:
            raise DataError(f"model.encoder.model: {model}: none of {', '.join(_FOLDER_WEIGHTS)} in it")
        config = _read_json(path)
    else:
        config = _published(model)
    preprocess = config.get("preprocess_cfg", {}) if isinstance(config, dict) else {}
    config = config.get("model_cfg", config) if isinstance(config, dict) else config
    if (
        not isinstance(config, dict)
        or not isinstance(config.get("vision_cfg"), dict)
        or "embed_dim" not in config
    ):
        raise ConfigError(
            f"model.encoder.model: {model}: no model config of OpenCLIP (embed_dim and vision_cfg are needed)"
        )
    if not isinstance(preprocess, dict):
        raise ConfigError(f"model.encoder.model: {model}: its preprocess_cfg holds no settings; copy it anew")
    taken = {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config}
    return copy.deepcopy(taken), preprocess, weights


def _read_json(path: Path) -> Any:
    try:
        return load_json(path.read_text())
    except OSError as error:
        raise DataError(f"model.encoder.model: {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"model.encoder.model: {path}: no JSON: {one_line(error)}") from error


def _published(name: str) -> dict[str, Any]:
    """A model config that ships with OpenCLIP, with the preprocessing that its published weights agree on."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if name not in open_clip.list_models():
        raise ConfigError(
            f"model.encoder.model: OpenCLIP has no model {name!r}; "
            + did_you_mean(name, open_clip.list_models())
        )
    tags = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
    preprocess = {}
    usually = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD, "resize_mode": "shortest"}
    for key, usual in {**usually, "interpolation": "bicubic"}.items():
        found = [tag.get(key) or usual for tag in tags]
        values = {tuple(value) if isinstance(value, list) else value for value in found}
        if len(values) == 1:
            preprocess[key] = values.pop()
    config = open_clip.get_model_config(name)
    assert config is not None, "it is listed"
    return {"model_cfg": config, "preprocess_cfg": preprocess}


def _build_tower(config: dict[str, Any], name: str) -> nn.Module:
    """The image tower with random weights, without what stands behind the patch tokens."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.timm_model import TimmModel

    trunk = config["vision_cfg"].get("timm_model_name")
    if trunk is not None and not timm.is_model(str(trunk)):  # "hf-hub:" and "local-dir:" bring a config along
        raise ConfigError(f"model.encoder: {name}: vision_cfg.timm_model_name: timm has no model {trunk!r}")
    try:
        vision = CLIPVisionCfg(**{**config["vision_cfg"], "timm_model_pretrained": False})
        tower: Any = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    except Exception as error:  # unknown fields, sizes that do not divide, models that timm lacks
        raise ConfigError(f"model.encoder: OpenCLIP cannot build {name}: {one_line(error)}") from error
    if isinstance(tower, TimmModel):
        return tower.trunk
    if hasattr(tower, "layer4"):
        tower.attnpool = nn.Identity()
        return tower
    if tower.attn_pool is not None or tower.final_ln_after_pool:
        tower.ln_post = nn.Identity()
    tower.proj = tower.attn_pool = tower.attn_pool_contrastive = None
    return tower


def _square(size: Any, name: str) -> int:
    """Side of a square image; raises ConfigError for another shape."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ConfigError(
            f"model.encoder.model: {name}: takes images of {size} pixels; only squares are read here"
        )
    return side


def as_timm(encoder: Encoder) -> TimmEncoder | None:
    """The same encoder as a model of timm, where it is one: OpenCLIP's plain ViT with its class token.

    Returns:
        In eval mode, with the weights; None where timm has no such architecture.
    """
    if isinstance(encoder, TimmEncoder):
        return encoder
    tower = encoder.backbone
    if not isinstance(encoder, OpenCLIPEncoder) or not hasattr(tower, "class_embedding"):
        return None
    block = tower.transformer.resblocks[0]
    quick = "_quickgelu" if type(block.mlp.gelu).__name__ == "QuickGELU" else ""
    arguments = {
        "patch_size": tower.patch_size[0],
        "embed_dim": tower.conv1.out_channels,
        "depth": len(tower.transformer.resblocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.c_fc.out_features / tower.conv1.out_channels,
    }
    name = f"vit_base_patch16_clip{quick}_224"
    mean, std = map(tuple, encoder.normalize.channels)
    twin = TimmEncoder(name, encoder.image_size, model_args=arguments, mean=mean, std=std)  # type: ignore[arg-type]
    theirs = {f"visual.{key}": tensor for key, tensor in tower.state_dict().items()}
    try:
        ours = {n.removeprefix("encoder.backbone."): t for n, t in from_released(theirs).items()}
        load_strictly(twin.backbone, ours, encoder.source)
    except DataError:  # scaled layers, a norm that is missing
        return None
    twin.source = encoder.source
    return twin.eval()
