"""`lcl export`: from what, into what, the card, the upload, and what is refused."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.errors import ConfigError, DataError, LCLError
from lcl_composer.export import export_run, load_encoder
from lcl_composer.export.run import FORMATS
from lcl_composer.models.released import from_released
from tests import runs
from tests.export.taken import config_of, contents, model_of, pixels, write_run


@pytest.fixture(scope="module")
def config() -> Any:
    return config_of()


@pytest.fixture(scope="module")
def model(config: Any) -> Any:
    return model_of(config)


@pytest.fixture
def run(config: Any, model: Any, tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs/tiny", config, model)


@torch.no_grad()
def latents(folder: Path) -> torch.Tensor:
    encoder, pooler = load_encoder(folder)
    return pooler(encoder(pixels()))  # type: ignore[misc]


@torch.no_grad()
def test_from_a_run_a_checkpoint_and_an_exported_encoder(model: Any, run: Path, tmp_path: Path) -> None:
    expected = model.encode_images(pixels())[0]
    of_run = export_run(run, tmp_path / "one")
    of_checkpoint = export_run(run / "checkpoints/ep0-ba5-rank0.pt", tmp_path / "two")
    of_export = export_run(of_run, tmp_path / "three")
    assert all(torch.equal(latents(folder), expected) for folder in (of_run, of_checkpoint, of_export))


def test_the_newest_checkpoint_wherever_it_was_saved(model: Any, tmp_path: Path) -> None:
    config = config_of(save_folder=str(tmp_path / "elsewhere"))
    run = write_run(tmp_path / "runs/tiny", config, model)
    shutil.move(run / "checkpoints", tmp_path / "elsewhere")
    broken = tmp_path / "elsewhere/ep0-ba4-rank0.pt"
    broken.write_bytes(b"an older one")
    export_run(run, tmp_path / "out")
    (tmp_path / "elsewhere/ep0-ba5-rank0.pt").unlink()
    with pytest.raises(DataError, match=r"ep0-ba4-rank0.pt: cannot be read"):
        export_run(run, tmp_path / "other")
    broken.unlink()
    with pytest.raises(DataError, match=r"runs/tiny has no checkpoint \(save_folder .*elsewhere\); name"):
        export_run(run, tmp_path / "other")
    assert not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("text", ["", "{", None])
def test_a_run_whose_config_was_lost(run: Path, tmp_path: Path, text: str | None) -> None:
    """As after a crash of the machine; the checkpoint has it."""
    (run / "config.yaml").unlink() if text is None else (run / "config.yaml").write_text(text)
    export_run(run, tmp_path / "out")
    export_run(run / "checkpoints", tmp_path / "other")


def test_a_checkpoint_is_exported_from_anywhere(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds its config, of which the model's part is read: the drop-ins of the run need not be there."""
    config = config_of(callbacks={"lost_drop_in": {}})
    torch.save(contents(model, config), tmp_path / "alone.pt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with torch.no_grad():
        assert torch.equal(latents(export_run("../alone.pt", "out")), model.encode_images(pixels())[0])


def test_checkpoints_of_before_they_held_their_config(model: Any, run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/ep0-ba5-rank0.pt"
    torch.save({"state": {"model": model.state_dict()}}, checkpoint)
    assert torch.equal(latents(export_run(checkpoint, tmp_path / "out")), model.encode_images(pixels())[0])
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("hidden_size: 32", "hidden_size: 64"))
    with pytest.raises(DataError, match=r"ep0-ba5-rank0\.pt: another architecture than its config") as caught:
        export_run(checkpoint, tmp_path / "other")
    assert "\n" not in str(caught.value)
    shutil.move(checkpoint, tmp_path / "alone.pt")
    with pytest.raises(DataError, match=r"alone\.pt: no .*config\.yaml; it must lie in runs/NAME"):
        export_run(tmp_path / "alone.pt", tmp_path / "other")


def test_the_average_of_ema(model: Any, config: Any, run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/ep0-ba5-rank0.pt"
    with pytest.raises(DataError, match="was trained without ema"):
        export_run(run, tmp_path / "ema", weights="ema")
    whole = contents(model, config)
    name = "encoder.backbone.pos_embed"
    average = {name: model.state_dict()[name] + 1.0}
    whole["state"]["algorithms"] = {"EMA": {"average": average, "in_model": False}}
    torch.save(whole, checkpoint)
    out = export_run(run, tmp_path / "ema", weights="ema")
    assert torch.equal(load_file(out / "model.safetensors")["pos_embed"], average[name])
    assert "the average of its weights (EMA)" in (out / "README.md").read_text()
    with pytest.raises(DataError, match="holds one set of weights"):
        export_run(out, tmp_path / "again", weights="ema")


def test_released_layout(model: Any, run: Path, tmp_path: Path) -> None:
    out = export_run(run, tmp_path / "out", format="released")
    released = load_file(out / "state_dict.safetensors")
    assert "visual.conv1.weight" in released
    ours = from_released(released)
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
    config = json.loads((out / "model_config.json").read_text())
    assert config["vision_cfg"] == {
        "image_size": 16,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    }
    text = {"context_length": 64, "vocab_size": 300, "width": 32, "heads": 2, "layers": 2}
    assert config["text_cfg"] == text


def test_the_card_says_what_it_is(run: Path, tmp_path: Path) -> None:
    summary: dict[str, Any] = {
        "batches": 5,
        "losses": {"total": {"start": 9.0, "end": 2.5}},
        "probe": {"trained": 0.625, "by": {"class": 0.25}, "ok": True},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    packages, git = {"torch": "2.7.0", "absent": None}, {"commit": "abc123"}
    environment = {"command": ["train.py", "a b.yaml"], "packages": packages, "git": git}
    (run / "environment.json").write_text(json.dumps(environment))
    out = export_run(run, tmp_path / "out", format="timm", license="mit")
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("mit", "timm")
    for said in (
        "pre-trained by the method `lcl`",
        "data: documents `data/train`",
        "documents seen: 20 in 5 batches",
        "images seen: 1,234",
        "| probe: trained | 0.625 |",
        "| probe: by/class | 0.25 |",
        "train.py 'a b.yaml'",
        "| total loss at the end of training | 2.5 |",
        "size: 16 x 16 RGB (shortest side, bicubic, centre crop)",
        f"lcl export {run} {out} --format timm --license mit",
        f'timm.create_model("local-dir:{out}", pretrained=True)',
        "torch 2.7.0.",
        "abc123",
    ):
        assert said in card, said
    assert ".partial" not in card
    (run / "summary.json").write_text(json.dumps(summary | {"batches": 9}))  # of later weights
    assert "0.625" not in (export_run(run, tmp_path / "later") / "README.md").read_text()


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'relased'; did you mean 'released'"):
        export_run(run, tmp_path / "out", format="relased")
    with pytest.raises(DataError, match="nowhere: no such file"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"is neither a run folder .* nor a checkpoint nor an exported"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="runs is there already and not empty; remove it"):
        export_run(run, tmp_path / "runs")
    checkpoint = run / "checkpoints/ep0-ba5-rank0.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read, it is truncated"):
        export_run(run, tmp_path / "out")
    torch.save({"state": {"model": {"w": torch.zeros(2)}}}, checkpoint)
    with pytest.raises(DataError, match="another architecture"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["encoder", "hf", "released", "timm"])
def test_a_full_disk_is_said_in_a_line(run: Path, tmp_path: Path, format: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DataError, match=r"export: .*out cannot be written: .*large") as caught:
            export_run(run, tmp_path / "out", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_a_place_where_nothing_can_be_written_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file/out", Path("/proc/out"), tmp_path / ("n" * 300)):
        with pytest.raises(DataError, match=r"export: .* cannot be written") as caught:
            export_run(run, out)
        assert "\n" not in str(caught.value)


RESNET = {"name": "timm", "model_name": "resnet18", "image_size": 32}
DINO = {
    "name": "transformers",
    "model_type": "dinov2",
    "image_size": 16,
    "model_args": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8},
}
TOWER = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
OPEN_CLIP = {"name": "open_clip", "model": {"embed_dim": 16, "vision_cfg": TOWER}}


@pytest.mark.parametrize(
    ("format", "encoder", "message"),
    [
        (
            "released",
            RESNET,
            "released layout: no counterpart for 'encoder.*it needs a timm CLIP ViT and an OPT",
        ),
        (
            "timm",
            DINO,
            r"TransformersEncoder \(transformers' dinov2\) is no model of timm; try --format hf or",
        ),
        ("timm", OPEN_CLIP, r"OpenCLIPEncoder .* is no model of timm"),
        ("hf", OPEN_CLIP, r"transformers has no counterpart of OpenCLIPEncoder .*try --format onnx"),
        ("open_clip", RESNET, r"takes an image tower and a text tower .*; this one was trained by lcl; try"),
    ],
)
def test_an_encoder_that_cannot_go_into_a_format(
    tmp_path: Path, format: str, encoder: dict[str, Any], message: str
) -> None:
    size = 16 if encoder is DINO else 32
    data = {**runs.settings(Path("data"))["data"], "image_size": size}
    config = config_of(encoder=encoder, data=data)
    run = write_run(tmp_path / "run", config, model_of(config))
    with pytest.raises(LCLError, match=message) as caught:
        export_run(run, tmp_path / "out", format=format)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_every_format_is_in_the_help_and_the_docs() -> None:
    text = CliRunner().invoke(app, ["export", "--help"]).output
    docs = (runs.ROOT / "docs/transfer.md").read_text()
    for name in FORMATS:
        assert name in text
        assert f"`{name}`" in docs
