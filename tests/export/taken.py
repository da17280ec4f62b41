"""Runs to export from: tiny models as checkpoints in run folders, as a Composer run leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lcl_composer.config import RunConfig
from lcl_composer.methods.build import build_model
from tests import runs

VOCAB_SIZE = 300


def config_of(**changes: Any) -> RunConfig:
    """The tiny experiment with other parts of ``model``, or whole keys, in their place."""
    values = runs.settings(Path("data"))
    parts = {key: changes.pop(key) for key in ("encoder", "pooler", "language_model") if key in changes}
    values["model"] |= parts
    return RunConfig(**values | changes)


def model_of(config: RunConfig, vocab_size: int = VOCAB_SIZE) -> Any:
    """Built with seed 5, its norms and biases no plain ones, in eval mode."""
    torch.manual_seed(5)
    model = build_model(config, vocab_size).eval()
    for name, parameter in model.encoder.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return model


def contents(model: Any, config: RunConfig) -> dict[str, Any]:
    """What a checkpoint holds of a run of five batches."""
    settings = config.model_dump(mode="json")
    begun = {
        "run_name": "tiny",
        "settings": settings,
        "encoder": {"recipe": model.encoder.recipe, "weights": ""},
    }
    return {
        "state": {
            "model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
            "callbacks": {"CheckpointContents": begun, "TrainingMetrics": {"images_seen": 1234}},
            "timestamp": {"Timestamp": {"batch": 5, "sample": 20}},
        }
    }


def write_run(folder: Path, config: RunConfig, model: Any) -> Path:
    """``folder`` as a run folder with one checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    runs.write_yaml(folder, config.model_dump(mode="json")).rename(folder / "config.yaml")
    torch.save(contents(model, config), folder / "checkpoints/ep0-ba5-rank0.pt")
    return folder


def pixels(count: int = 3, size: int = 16) -> torch.Tensor:
    """uint8 images of noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
