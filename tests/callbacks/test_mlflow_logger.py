from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.callbacks.mlflow_logger import MLFlowLogger
from lcl_composer.errors import ConfigError
from lcl_composer.registry import loggers
from tests.callbacks.trackers import STEPS, two_launches
from tests.callbacks.training import make_trainer


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's store in a folder, which its newest releases want a word for."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    return mlflow.MlflowClient((tmp_path / "store").as_uri())


def test_launches_are_one_run_with_settings_pictures_and_steps_that_never_go_back(
    tmp_path: Path, client: Any
) -> None:
    two_launches(tmp_path / "run", lambda: MLFlowLogger(str(tmp_path / "run"), experiment="trial"))
    experiment = client.get_experiment_by_name("trial")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny"
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["data.streams"] == "[1, 2]"
    history = client.get_metric_history(run.info.run_id, "launch")
    assert [(point.step, point.value) for point in history] == STEPS
    names = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert "config.yaml" in names
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    shown = sorted(path.split("timestamp")[0] for path in pictures if path.endswith(".png"))
    assert shown == [f"images/attention_maps+step+{step}+" for step in (3, 6)], "that of batch 3 is kept once"


def test_a_run_that_fails_is_told_as_failed(tmp_path: Path, client: Any) -> None:
    trainer = make_trainer([], [MLFlowLogger(str(tmp_path))], duration="2ba")
    trainer.state.model.forward = None  # type: ignore[method-assign]
    with pytest.raises(TypeError):
        trainer.fit()
    trainer.close()
    (run,) = client.search_runs([client.get_experiment_by_name("lcl-composer").experiment_id])
    assert run.info.status == "FAILED"


def test_what_cannot_be_sent_is_said_once_and_stops_nothing(
    tmp_path: Path, client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = MLFlowLogger(str(tmp_path))
    trainer = make_trainer([], [logger], duration="3ba")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the server is gone\nfor good")

    with monkeypatch.context() as patch:
        for name in ("log_batch", "log_image", "set_terminated", "update_run"):
            patch.setattr(logger._client, name, refuse)
        trainer.fit()
    out = capsys.readouterr().out
    assert out.count("note: loggers.mlflow: something could not be sent: the server is gone for good") == 1
    trainer.close()
    (run,) = client.search_runs([client.get_experiment_by_name("lcl-composer").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/train/total")
    assert [point.step for point in history] == [0, 1, 2], "what waited is sent when it is back"


def test_without_a_server_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        make_trainer([], [MLFlowLogger(str(tmp_path))])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"^loggers\.mlflow: .*is the server there\?$"):
        make_trainer([], [MLFlowLogger(str(tmp_path), tracking_uri="http://127.0.0.1:1")])


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"logger 'mlflow': needs the package mlflow-skinny: pip install"):
        loggers.build({"name": "mlflow"})
