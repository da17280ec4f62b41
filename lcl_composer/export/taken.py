"""What is taken away: encoder, pooler and all weights of a run, a checkpoint or an exported folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from lcl_composer.checkpoint import Begun, Progress, read_begun, read_model_state, read_progress
from lcl_composer.config.schema import ModelConfig
from lcl_composer.config.yaml_file import read_yaml
from lcl_composer.errors import DataError, one_line
from lcl_composer.json_data import load_json
from lcl_composer.links import leads_out, refuse_links
from lcl_composer.models.exported import CONFIG_FILE, ENCODER_FILE, architecture, load_encoder
from lcl_composer.models.finite import check_finite
from lcl_composer.registry import encoders, poolers
from lcl_composer.run_folder import RunFolder
from lcl_composer.sharded import is_sharded

if TYPE_CHECKING:
    from lcl_composer.models.encoder import Encoder
    from lcl_composer.models.pooler import AttentivePooler

Weights = Literal["trained", "ema"]

#: What of an encoder's settings says nothing of its shape; the second is older checkpoints' alone.
_NO_SHAPE = ("pretrained", "gradient_checkpointing")


@dataclass(frozen=True)
class Taken:
    """An encoder with what is known of its training.

    Attributes:
        source: The checkpoint, or the exported folder.
        encoder: In eval mode.
        pooler: The same; None where the method has none.
        pooler_spec: What builds the pooler.
        weights: ``trained`` or ``ema``.
        state: All of the model's tensors; empty where an exported folder was taken.
        settings: The run's config; empty there too.
        progress: How far it was trained; None there too.
        run: The run folder, None where it is not known.
    """

    source: Path
    encoder: Encoder
    pooler: AttentivePooler | None
    pooler_spec: dict[str, Any] | None
    weights: Weights = "trained"
    state: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    run: Path | None = None

    @property
    def method(self) -> str:
        """Name of the method that it was trained by; "" where it is not known."""
        return self.settings.get("method", {}).get("name", "")


def take(run: str | Path, weights: Weights = "trained") -> Taken:
    """Read what is to be exported.

    Args:
        run: ``runs/NAME`` or a folder of checkpoints, of which the newest is taken; a checkpoint, whole or
            sharded; or an exported encoder.
        weights: ``trained``, or the average of the ``ema`` algorithm.

    Raises:
        DataError: If there is no checkpoint, it or its config cannot be read, they do not fit each other, or
            weights are not finite.
    """
    path = Path(run)
    if not path.is_dir() or is_sharded(path):
        refuse_links(path.parent, [path])
        return _of_checkpoint(path, weights)
    if (path / CONFIG_FILE).is_file() and (path / ENCODER_FILE).is_file():
        return _of_folder(path, weights)
    run_folder = path if (path / "config.yaml").is_file() else None
    return _of_checkpoint(_newest_checkpoint(path), weights, run_folder)


def _newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run folder, wherever its ``save_folder`` was."""
    config = run / "config.yaml"
    refuse_links(run, [config, run / "checkpoints"])
    if found := _newest_in(run / "checkpoints") or _newest_in(run):
        return found
    if not config.is_file():
        raise DataError(
            f"export: {run} is neither a run folder (no config.yaml) nor a checkpoint nor an exported encoder"
        )
    named = read_yaml(config).content.get("save_folder")
    if named and (found := _newest_in(Path(str(named)))):
        if leads_out(found.parent, run):
            print(f"note: export: {found}, in the save_folder that {config} names", flush=True)
        return found
    raise DataError(f"export: {run} has no checkpoint (save_folder {named}); name the checkpoint itself")


def _newest_in(folder: Path) -> Path | None:
    """The newest checkpoint directly in a folder, None if there is none."""
    found: list[Path] = [item.path for item in RunFolder("", folder, str(folder)).found()]
    found = found or sorted((p for p in folder.glob("ep*") if is_sharded(p)), key=lambda p: p.stat().st_mtime)
    if not found:
        return None
    refuse_links(folder, [found[-1]])
    return found[-1]


def _of_folder(folder: Path, weights: Weights) -> Taken:
    if weights != "trained":
        raise DataError(f"export: {folder} holds one set of weights; name the run or a checkpoint for others")
    encoder, pooler = load_encoder(folder)
    spec = load_json((folder / CONFIG_FILE).read_text()).get("pooler")
    run = folder.parent if (folder.parent / "config.yaml").is_file() else None
    return Taken(folder, encoder, pooler, spec, run=run)


def _of_checkpoint(checkpoint: Path, weights: Weights, run: Path | None = None) -> Taken:
    state = read_model_state(checkpoint, weights)
    check_finite(f"checkpoint {checkpoint}", state)
    begun = read_begun(checkpoint)
    beside = checkpoint.resolve().parent.parent
    if run is None and (beside / "config.yaml").is_file():
        run = beside
    settings = begun.settings or _settings_of(run, checkpoint)
    model = ModelConfig.model_validate(settings["model"])
    encoder, pooler = _image_side(model, begun, state, checkpoint)
    spec = model.pooler.spec() if model.pooler is not None else None
    progress = read_progress(checkpoint)
    return Taken(checkpoint, encoder.eval(), pooler, spec, weights, state, settings, progress, run)


def _settings_of(run: Path | None, checkpoint: Path) -> dict[str, Any]:
    """The config in the run folder of a checkpoint that was written before checkpoints held it."""
    if run is None:
        path = checkpoint.resolve().parent.parent / "config.yaml"
        raise DataError(f"checkpoint {checkpoint}: no {path}; it must lie in runs/NAME/checkpoints/")
    return read_yaml(run / "config.yaml").content


def _image_side(
    model: ModelConfig, begun: Begun, state: dict[str, Tensor], checkpoint: Path
) -> tuple[Encoder, AttentivePooler | None]:
    """Encoder and, if there is one, pooler with the checkpoint's weights; no more of the run is built."""
    try:
        recipe = architecture(begun.encoder.get("recipe") or {}) or model.encoder.spec()
        encoder = encoders.build({key: value for key, value in recipe.items() if key not in _NO_SHAPE})
        pooler = None
        if model.pooler is not None:
            language_model = model.language_model.spec() if model.language_model is not None else {}
            embed_dim = language_model.get("hidden_size", len(state["pooler.proj.weight"]))
            pooler = poolers.build(model.pooler.spec(), width=encoder.width, embed_dim=embed_dim)
        for name, part in (("encoder.", encoder), ("pooler.", pooler)):
            if part is not None:
                weights = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
                part.load_state_dict(weights)
    except (RuntimeError, LookupError, ValueError, AttributeError) as error:
        raise DataError(
            f"checkpoint {checkpoint}: another architecture than its config: {one_line(error)}"
        ) from error
    return encoder, pooler.eval() if pooler is not None else None
