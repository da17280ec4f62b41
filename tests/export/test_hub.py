"""`lcl export --push`: what arrives at a Hub, and what is said where it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.export import export_run
from tests.export.hub import Hub, listening
from tests.export.taken import config_of, model_of, write_run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine in place of the real one, whose token this process holds."""
    with listening() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT sets at the import
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = config_of()
    return write_run(tmp_path / "runs/tiny", config, model_of(config))


def test_the_folder_arrives_whole(hub: Hub, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(run), str(out), "--format", "hf", "--push", "lab/tiny"])
    assert f"wrote {out}\npushed to lab/tiny\n" in result.output
    assert [(m["name"], m["organization"]) for m in hub.made] == [("tiny", "lab")]
    assert hub.made[0].get("private") is True or hub.made[0]["visibility"] == "private"
    assert hub.files["lab/tiny"] == {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(hub.files["lab/tiny"]) == ["README.md", "config.json", "model.safetensors"]
    card = (out / "README.md").read_text()
    assert 'AutoModel.from_pretrained("lab/tiny")' in card
    assert "lcl export" in card


def test_what_the_hub_refuses_leaves_the_export(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = r"out is written, but was not pushed to me/tiny: .*401 .*`hf upload me/tiny /"
    with pytest.raises(DataError, match=message) as caught:
        export_run(run, tmp_path / "out", push="me/tiny")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_no_way_to_the_hub(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"out is written, but was not pushed to me/tiny: .*onnect") as caught:
        export_run(run, tmp_path / "out", push="me/tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("tiny", "--push tiny: names no owner; write OWNER/tiny"),
        ("", "--push : Repo id must"),
        ("a/b/c", "--push a/b/c: Repo id must be in the form"),
        ("me/ti ny", "--push me/ti ny: Repo id must use alphanumeric"),
        ("https://huggingface.co/me/tiny", "--push https://huggingface.co/me/tiny: Repo id must"),
    ],
)
def test_a_name_that_is_none(hub: Hub, run: Path, tmp_path: Path, repository: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export_run(run, tmp_path / "out", push=repository)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_what_keeps_a_push_from_beginning(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            export_run(run, tmp_path / "out", push="me/tiny")
        assert not list(tmp_path.glob("out*"))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set; unset it")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    refused("no token of the Hub; log in with `hf auth login`, or set HF_TOKEN")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(r"--push needs huggingface_hub .*`pip install huggingface_hub`")
