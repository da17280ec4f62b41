from __future__ import annotations

from pathlib import Path

import torch

from lcl_composer.algorithms.ema import EMA
from lcl_composer.callbacks.export_encoder import ExportEncoder, is_as_it_came
from lcl_composer.config import RunConfig
from lcl_composer.export import export_encoder, load_encoder
from lcl_composer.methods.build import build_model
from lcl_composer.registry import callbacks
from tests import runs
from tests.algorithms.training import make_trainer, weights
from tests.models.tiny import TOKENIZER

PATCHES = "encoder.backbone.patch_embed.proj.weight"


def exported(folder: Path) -> torch.Tensor:
    return load_encoder(folder)[0].backbone.patch_embed.proj.weight


def train(folder: Path, algorithms=(), save_interval: str = "2ba"):
    config = RunConfig(**runs.settings(Path("data"), save_interval=save_interval))
    model = build_model(config, TOKENIZER.vocab_size)
    at_checkpoints = callbacks.build({"name": "export_encoder"})
    trainer = make_trainer(
        algorithms,
        [at_checkpoints, ExportEncoder(folder / "encoder", config)],
        model=model,
        duration="3ba",
    )
    trainer.fit()
    return trainer


def test_each_checkpoint_has_its_encoder_and_the_last_is_the_runs(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["encoder", "encoder-ba2", "encoder-ba3"]
    last = exported(tmp_path / "encoder")
    assert torch.equal(last, weights(trainer)[PATCHES])
    assert torch.equal(last, exported(tmp_path / "encoder-ba3"))
    assert not torch.equal(last, exported(tmp_path / "encoder-ba2"))


def test_epochs_are_checkpoints_too(tmp_path: Path) -> None:
    train(tmp_path, save_interval="1ep")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["encoder", "encoder-ba3"]


def test_the_average_is_exported_where_ema_says_so(tmp_path: Path) -> None:
    trainer = train(tmp_path, [ema := EMA("2ba")])
    assert ema.in_model  # after the end of training
    average, trained = weights(trainer)[PATCHES], ema.average[PATCHES]
    assert torch.equal(exported(tmp_path / "encoder"), average)
    assert torch.equal(exported(tmp_path / "encoder-ba3"), average)
    assert not torch.equal(average, trained)


def test_what_came_from_elsewhere_and_was_not_trained_is_not_written_again(tmp_path: Path) -> None:
    values = runs.settings(Path("data"), method={"name": "clip"})
    values["model"]["pooler"] = None
    scratch = build_model(config := RunConfig(**values), TOKENIZER.vocab_size)
    assert not is_as_it_came(scratch)
    export_encoder(scratch, config, tmp_path / "first")
    values["model"]["encoder"] = {"name": "exported", "folder": str(tmp_path / "first")}
    model = build_model(RunConfig(**values), TOKENIZER.vocab_size)
    assert is_as_it_came(model)
    with torch.no_grad():
        model.encoder.backbone.pos_embed[0, 0, 0] += 1e-6
    assert not is_as_it_came(model)
