"""Which encoders are named, and that each is told from the others by what it holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.entrants import read_entrants
from lcl_composer.errors import ConfigError, DataError, LCLError

SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
VIT = {"name": "timm", "model_name": "vit_base_patch32_clip_224", "image_size": 16, "model_args": SIZES}
TIMM = json.dumps(VIT)
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 1, "head_width": 12},
}


def write_encoder(folder: Path, weights: bytes = b"weights", **changes: Any) -> str:
    """An exported encoder whose weights nobody looks into."""
    folder.mkdir(parents=True)
    grey = {"mean": [0.5] * 3, "std": [0.5] * 3}
    description = {"encoder": VIT, "width": 32, "tokens_per_image": 4, **grey, **changes}
    (folder / "config.json").write_text(json.dumps(description))
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


def digest(argument: str) -> str:
    return read_entrants([argument])[0].digest


def test_encoders_are_named_by_their_run_or_by_their_label(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "runs/quickstart/encoder")
    found = read_entrants([folder, f"random={TIMM}"])
    assert [(e.label, e.name, e.image_size) for e in found] == [
        ("quickstart", "quickstart", 16),
        ("random", "random", 16),
    ]
    assert found[0].spec == {"name": "exported", "folder": folder}
    assert found[1].spec == VIT
    (Path(folder) / "model.safetensors").write_bytes(b"trained further")
    assert digest(folder) != found[0].digest


def test_an_encoder_in_braces_is_told_by_the_files_that_it_names(tmp_path: Path) -> None:
    """Weights, a model config, a folder of transformers; one that was moved is the same one."""
    config, weights, folder = tmp_path / "model.json", tmp_path / "w.pt", tmp_path / "vit"
    config.write_text(json.dumps(OPEN_CLIP))
    weights.write_bytes(b"one")
    folder.mkdir()
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "vit", "image_size": 16, "patch_size": 8, **sizes})
    )
    (folder / "model.safetensors").write_bytes(b"one")
    grey = "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]"
    clip = f"{{name: open_clip, model: {config}, weights: {weights}}}"
    vit = f"{{name: transformers, model_type: vit, image_size: 16, pretrained: {folder}, {grey}}}"
    first = digest(clip), digest(vit)
    assert (digest(clip), digest(vit)) == first
    shutil.copytree(tmp_path, tmp_path / "copy")
    there = [text.replace(str(tmp_path), f"{tmp_path}/copy") for text in (clip, vit)]
    assert tuple(digest(text) for text in there) == first
    for file, text, at in ((weights, clip, 0), (folder / "model.safetensors", vit, 1)):
        file.write_bytes(b"two")
        assert digest(text) != first[at]
        file.write_bytes(b"one")
    config.write_text(json.dumps(OPEN_CLIP, indent=1))
    assert digest(clip) != first[0]


def test_one_encoder_is_one_however_it_is_named(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "lcl/encoder")
    for other in (folder, f"{{name: exported, folder: {folder}}}"):
        with pytest.raises(ConfigError, match="the same encoder is named twice"):
            read_entrants([f"a={folder}", f"b={other}"])
    (entrant,) = read_entrants([f"{{name: exported, folder: {folder}}}"])
    assert (entrant.label, entrant.digest) == ("lcl", digest(folder))


def test_one_label_for_several_encoders_is_asked_for(tmp_path: Path) -> None:
    first, other = (write_encoder(tmp_path / f"{n}/lcl/encoder", n.encode()) for n in "ab")
    assert [e.label for e in read_entrants([f"lcl={first}", f"lcl={other}"])] == ["lcl", "lcl"]
    with pytest.raises(ConfigError, match=r"another encoder is called 'lcl' too; write LABEL="):
        read_entrants([first, other])


def test_each_has_the_image_size_that_it_is_built_with(tmp_path: Path) -> None:
    """Also where neither settings nor config.json spell one out."""
    recipe = {"name": "open_clip", "model": OPEN_CLIP}
    exported = write_encoder(tmp_path / "full/encoder", encoder=recipe, width=48, tokens_per_image=16)
    named = [
        exported,
        "{name: open_clip, model: ViT-B-32-256}",
        "{name: timm, model_name: vit_base_patch32_clip_224}",
    ]
    assert [entrant.image_size for entrant in read_entrants(named)] == [32, 256, 224]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("a b=runs/x/encoder", "'a b' cannot be a label; one has letters from a to z, digits"),
        ("ä={name: timm}", "'ä' cannot be a label"),
        ("=runs/x/encoder", "'' cannot be a label"),
        ("lcl=", r"no encoder after the label; write lcl=runs/NAME/encoder"),
        ("runs/lr=3/encoder", "runs/lr=3/encoder: no such folder"),
    ],
)
def test_a_label_that_is_none_is_said(argument: str, message: str) -> None:
    with pytest.raises(LCLError, match=message):
        read_entrants([argument])


def test_a_folder_with_an_equals_sign_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_encoder(Path("lr=3"))
    (entrant,) = read_entrants(["lr=3"])
    assert (entrant.label, entrant.name) == ("lr_3", "lr_3")


def test_what_is_no_encoder_is_said_in_a_line(tmp_path: Path) -> None:
    write_encoder(tmp_path / "run/encoder")
    with pytest.raises(DataError, match=r"run: not an exported encoder, .* did you mean .*run/encoder\?"):
        read_entrants([str(tmp_path / "run")])
    with pytest.raises(ConfigError, match="unknown encoder 'tim'; did you mean 'timm'"):
        read_entrants(["{name: tim}"])
    with pytest.raises(ConfigError, match=r"model_name: missing"):
        read_entrants(["{name: timm}"])
    with pytest.raises(ConfigError, match=r"\{name: timm, .*20\}: model.encoder: .* no patch tokens of 20"):
        read_entrants(["{name: timm, model_name: vit_base_patch32_clip_224, image_size: 20}"])
    (tmp_path / "run/encoder/config.json").write_text("[]")
    with pytest.raises(DataError, match=r"damaged or not an exported encoder: config\.json holds a list"):
        read_entrants([str(tmp_path / "run/encoder")])
