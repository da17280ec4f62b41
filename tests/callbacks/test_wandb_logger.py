from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.callbacks.wandb_logger import WandBLogger
from lcl_composer.errors import ConfigError
from lcl_composer.registry import loggers
from tests.callbacks.trackers import STEPS, two_launches


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logger 'wandb': needs the package wandb: pip install -c constr"):
        loggers.build({"name": "wandb"})


def test_a_refusal_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: Any) -> None:
        assert settings["dir"] == tmp_path / "runs"
        assert (settings["name"], settings.get("group"), settings["entity"]) == ("tiny", None, "team")
        assert (settings["id"], settings["resume"]) == (None, "allow")
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    logger = WandBLogger(str(tmp_path / "runs"), entity="team")
    with pytest.raises(ConfigError, match=r"^loggers\.wandb: No API key .* to log in\.; set WANDB_API_KEY"):
        logger.init(type("State", (), {"run_name": "tiny"}), None)  # type: ignore[arg-type]


def test_a_resume_that_asks_for_a_checkpoint_gets_none(tmp_path: Path) -> None:
    """Composer looks on; with any other error a first launch would end, or wait for the network."""
    pytest.importorskip("wandb")
    with pytest.raises(FileNotFoundError):
        WandBLogger(str(tmp_path), entity="team").download_file("latest", "here")


def records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file, in the format of LevelDB's log behind seven bytes of its own."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = (1 << 15) - at % (1 << 15)
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def written(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What W&B keeps of the offline runs in a folder, in order: the rows of their histories, and settings."""
    from wandb.proto import wandb_internal_pb2

    rows, config = [], dict[str, Any]()
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                items = record.history.item
                rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            for part in (record.config, record.run.config):
                config |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in part.update}
    return rows, config


def test_launches_are_one_run_with_settings_pictures_and_steps_that_never_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    two_launches(folder, lambda: WandBLogger(str(folder)))
    wandb.teardown()  # as at a process's end: waits for what W&B's own process still writes
    runs = sorted(folder.glob("wandb/offline-run-*"))
    assert len(runs) == 2
    assert len({run.name.rpartition("-")[2] for run in runs}) == 1, "one id"
    rows, config = written(folder)
    assert [(row["batch"], row["launch"]) for row in rows if "launch" in row] == STEPS
    shown = [row["batch"] for row in rows if any(key.startswith("attention_maps") for key in row)]
    assert shown == [3, 6]
    assert config["optimizer"]["lr"] == 0.001
    assert "node_name" not in config
