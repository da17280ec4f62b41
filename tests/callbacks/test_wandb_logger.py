from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.callbacks.wandb_logger import WandBLogger
from lcl_composer.errors import ConfigError
from lcl_composer.registry import loggers


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logger 'wandb': needs the package wandb: pip install -c constr"):
        loggers.build({"name": "wandb"})


def test_a_refusal_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: Any) -> None:
        assert settings["dir"] == tmp_path / "runs"
        assert (settings["name"], settings["group"], settings["entity"]) == ("tiny", "tiny", "team")
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
