"""A launch that goes on with other settings: in force and said, or refused; what it must not take over."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lcl_composer.checkpoint import read_begun, read_model_state
from lcl_composer.config import RunConfig
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import DataError, LCLError
from lcl_composer.models.finite import not_finite
from lcl_composer.resume import Change, changes, check_resume, table
from lcl_composer.train import train
from tests import runs

DOCUMENTS = [runs.made_up(index) for index in range(34)]  # 8 batches of 4 an epoch


def resolved(**changed: Any) -> dict[str, Any]:
    """The settings of a run, with dotted keys changed, as a checkpoint holds them."""
    values = runs.settings(Path("data"))
    for key, value in changed.items():
        place = values
        *above, last = key.split("__")
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return RunConfig.model_validate(values).model_dump(mode="json")


def test_equal_settings_have_no_changes_however_they_are_written():
    spelled = resolved(optimizer__eps=1e-8, optimizer__betas=[0.9, 0.999], model__pooler__num_heads=2)
    assert changes(resolved(), spelled) == []
    assert (
        changes(resolved(callbacks={"retrieval": {}}), resolved(callbacks={"retrieval": {"every": "1ep"}}))
        == []
    )


def test_a_setting_that_is_newer_than_the_checkpoint_has_its_default():
    older = resolved()
    del older["eval_interval"], older["data"]["max_bad_fraction"], older["evaluation"]
    assert changes(older, resolved()) == []


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"optimizer__lr": 2e-3}, "optimizer.lr"),
        ({"optimizer__weight_decay": 0.0}, "optimizer.weight_decay"),
        ({"optimizer__betas": [0.9, 0.98]}, "optimizer.betas"),
        ({"scheduler__t_warmup": "4ba"}, "scheduler.t_warmup"),
        ({"max_duration": "30ba"}, "max_duration"),
        ({"seed": 18}, "seed"),
        ({"global_train_batch_size": 8}, "global_train_batch_size"),
        ({"device_train_microbatch_size": 2}, "device_train_microbatch_size"),
        ({"callbacks": {"retrieval": {}}}, "callbacks.retrieval"),
        ({"loggers": {"tensorboard": {}}}, "loggers.tensorboard"),
        ({"algorithms": {}}, "algorithms.gradient_clipping"),
        ({"algorithms__ema": {}}, "algorithms.ema"),
        ({"data__train__num_workers": 3}, "data.train.num_workers"),
        ({"data__train__local": "elsewhere"}, "data.train.local"),
        ({"data__eval": {"local": "held_out"}}, "data.eval"),
        ({"tokenizer__path": "elsewhere.json"}, "tokenizer.path"),
        ({"activation_checkpointing": {"parts": ["encoder"]}}, "activation_checkpointing"),
        ({"parallelism": {"fsdp": {"param_dtype": "bf16"}}}, "parallelism.fsdp"),
        ({"device_train_microbatch_tokens": 640}, "device_train_microbatch_tokens"),
        ({"tf32": True}, "tf32"),
        ({"model__encoder__model_args__proj_drop_rate": 0.1}, "model.encoder.model_args.proj_drop_rate"),
        ({"save_interval": "2ba"}, "save_interval"),
        ({"progress_bar": True}, "progress_bar"),
    ],
)
def test_what_a_run_takes_in_its_middle(changed: dict[str, Any], key: str):
    (change,) = changes(resolved(), resolved(**changed))
    assert change.key == key
    assert change.follows
    assert key in table("tiny", 10, [change])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"model__encoder__model_args__depth": 3},
            r"another architecture \(model\.encoder\.model_args\.depth",
        ),
        ({"model__language_model__num_hidden_layers": 1}, "another architecture"),
        (
            {"model__pooler__num_heads": 4},
            r"another architecture \(model\.pooler\.num_heads is 2 there and 4 here",
        ),
        ({"model__language_model__model_type": "gpt2"}, "another architecture"),
        ({"tokenizer": {"name": "clip"}}, "another tokenizer"),
        ({"data__max_tokens": 32}, r"another data layout \(data\.max_tokens is 64 there and 32 here"),
        ({"data__image_first_probability": 1.0}, "another data layout"),
        ({"data__train__shuffle_seed": 1}, r"another order of documents \(data\.train\.shuffle_seed is 17"),
        ({"data__train__shuffle": False}, "another order of documents"),
        ({"data__train__num_canonical_nodes": 2}, "another order of documents"),
        ({"data__train__epoch_size": 16}, "another order of documents"),
        ({"optimizer": {"name": "sgd", "lr": 1.0}}, "another optimizer"),
        ({"load_path": "x.pt"}, r"another start \(load_path is null there and x\.pt here\)"),
        (
            {"method": {"name": "lcl", "contrastive_weight": 1.0}},
            r"another method \(method\.contrastive_weight",
        ),
        ({"method": {"name": "lcl", "contrastive": "sigmoid"}}, r"another method \(method\.contrastive is"),
    ],
)
def test_what_a_run_cannot_take_is_refused_in_a_line(changed: dict[str, Any], message: str):
    before, now = (read(resolved(**changes)) for changes in ({}, changed))
    with pytest.raises(
        DataError, match=rf"^checkpoint x\.pt: .*{message}.*choose another run_name$"
    ) as caught:
        check_resume("x.pt", before, now)
    assert "\n" not in str(caught.value)


def read(settings: dict[str, Any], documents: str = "d", tokenizer: str = "t") -> Any:
    from lcl_composer.checkpoint import Begun

    return Begun("tiny", settings, documents, tokenizer)


def test_other_documents_or_tokens_under_the_same_path_are_refused():
    with pytest.raises(DataError, match="other documents"):
        check_resume("x.pt", read(resolved()), read(resolved(), documents="e"))
    with pytest.raises(DataError, match=r"another tokenizer \(data/tokenizer.json holds other ids\)"):
        check_resume("x.pt", read(resolved()), read(resolved(), tokenizer="u"))


def test_every_setting_has_a_word():
    """Of a key that is new in the schema someone must say what follows; till then it is refused."""
    for key in RunConfig.model_fields:
        inner = Change(f"{key}.name", 1, 2) if key in _SECTIONS else Change(key, 1, 2)
        assert inner.follows or inner.makes != "another run", key


_SECTIONS = {
    *("model", "method", "data", "optimizer", "scheduler", "tokenizer"),
    *("algorithms", "callbacks", "loggers", "evaluation"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"), DOCUMENTS)


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of six batches, a checkpoint every second, and the rate constant."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
        train(runs.write_yaml(folder, values(data)), [])
    return folder


def values(data: Path, **changed: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_duration": "6ba",
        "save_interval": "2ba",
        "scheduler": {"name": "constant"},
        "callbacks": {"lr_monitor": {}},
        "save_num_checkpoints_to_keep": 3,
    }
    return runs.settings(data, **(options | changed))


@pytest.fixture
def folder(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the run to go on with, as the working directory."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    yield tmp_path
    gc.collect()
    clean_shared_memory()


def go_on(folder: Path, data: Path, *overrides: str, **changed: Any) -> None:
    train(runs.write_yaml(folder, values(data, **changed)), list(overrides))


def logged(folder: Path, key: str, name: str = "tiny") -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[key] for row in rows if key in row]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs/tiny/checkpoints").glob("ep*.pt"))


@pytest.mark.slow
def test_optimizer_settings_are_in_force_and_said(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    overrides = ["optimizer.lr=5e-3", "optimizer.weight_decay=0.01", "max_duration=8ba", "seed=18"]
    go_on(folder, data, *overrides)
    out = capsys.readouterr().out
    assert "tiny goes on from batch 6 with 4 changed settings:" in out
    assert "optimizer.lr            0.001      0.005" in out
    assert logged(folder, "lr-AdamW/group0") == pytest.approx(6 * [1e-3] + 2 * [5e-3])
    state = torch.load(folder / "runs/tiny/checkpoints/latest-rank0.pt", weights_only=True)["state"]
    groups = state["optimizers"]["AdamW"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    settings = read_begun(folder / "runs/tiny/checkpoints/latest-rank0.pt").settings
    assert (
        settings["optimizer"]["lr"]
        == yaml.safe_load((folder / "runs/tiny/config.yaml").read_text())["optimizer"]["lr"]
        == 5e-3
    )
    assert checkpoints(folder) == ["ep0-ba4-rank0.pt", "ep0-ba6-rank0.pt", "ep0-ba8-rank0.pt"]


@pytest.mark.slow
def test_many_settings_may_change_at_once(folder: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    """Twice as many documents a batch: one batch is left of the epoch's 32 documents."""
    now: dict[str, Any] = {
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 4,
        "max_duration": "2ep",
        "save_interval": "1ep",
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.2, "betas": [0.8, 0.98]},
        "scheduler": {"name": "linear", "t_max": "1dur"},
        "algorithms": {"ema": {"half_life": "2ba"}},
        "callbacks": {"retrieval": {"every": "1ep", "max_images": 8}},
        "loggers": {"tensorboard": {}},
    }
    values_now = values(data, **now)
    values_now["data"]["eval"] = {"local": str(data / "train"), "num_workers": 0}
    values_now["data"]["train"]["num_workers"] = 1
    train(runs.write_yaml(folder, values_now), [])
    out = capsys.readouterr().out
    keys = ["global_train_batch_size", "optimizer.betas", "scheduler.name", "algorithms.ema", "data.eval"]
    assert all(f"\n  {key} " in out for key in keys)
    assert sorted(runs.read_metrics(folder)) == [*range(1, 12)]
    assert checkpoints(folder) == ["ep0-ba6-rank0.pt", "ep1-ba7-rank0.pt", "ep2-ba11-rank0.pt"]


@pytest.mark.slow
def test_a_refused_launch_leaves_everything_as_it_was(folder: Path, data: Path):
    before = {p: p.read_bytes() for p in (folder / "runs").rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(DataError, match=r"ep0-ba6-rank0\.pt: another order of documents"):
        go_on(folder, data, "data.train.shuffle_seed=3", "max_duration=8ba")
    with pytest.raises(LCLError, match=r"autoresume is false, and .*ep0-ba6-rank0\.pt lies there"):
        go_on(folder, data, "autoresume=false")
    with pytest.raises(LCLError, match=r"save_folder .*: holds the checkpoints of run 'tiny'; give 'other'"):
        go_on(folder, data, "run_name=other", "save_folder=runs/tiny/checkpoints")
    with pytest.raises(
        LCLError, match=r"trained to batch 6, .*ep0-ba6-rank0\.pt is not in save_folder elsewhere"
    ):
        go_on(folder, data, "save_folder=elsewhere")
    with pytest.raises(DataError, match=r"another start \(load_path"):
        go_on(folder, data, "load_path=runs/tiny/checkpoints/ep0-ba2-rank0.pt")
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_a_lost_symlink_and_a_damaged_checkpoint(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    """The newest is cut off, a byte of the one before is another: the oldest it is."""
    place = folder / "runs/tiny/checkpoints"
    expected = read_model_state(place / "ep0-ba6-rank0.pt")
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    (place / "latest-rank0.pt").unlink()
    content = (place / "ep0-ba6-rank0.pt").read_bytes()
    (place / "ep0-ba6-rank0.pt").write_bytes(content[: len(content) // 2])
    damaged = bytearray((place / "ep0-ba4-rank0.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (place / "ep0-ba4-rank0.pt").write_bytes(bytes(damaged))
    go_on(folder, data)
    out = capsys.readouterr().out
    assert "ep0-ba6-rank0.pt: cannot be read, it is truncated" in out
    assert "ep0-ba4-rank0.pt: cannot be read, archive" in out
    assert checkpoints(folder) == ["ep0-ba2-rank0.pt", "ep0-ba4-rank0.pt", "ep0-ba6-rank0.pt"]
    found = read_model_state(place / "latest-rank0.pt")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert sorted(runs.read_metrics(folder)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_lost_loss_is_neither_kept_nor_exported_nor_measured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without any callback in the YAML; what is launched again goes on from the last good checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    with pytest.raises(LCLError, match=r"not finite|is nan|is inf") as caught:
        go_on(tmp_path, data, "optimizer.lr=1e20", "save_interval=1ba", callbacks={})
    assert "\n" not in str(caught.value)
    run = tmp_path / "runs/tiny"
    assert not (run / "encoder").exists()
    assert not (run / "summary.json").exists()
    for path in (run / "checkpoints").glob("ep*.pt"):
        assert not not_finite(read_model_state(path))


@pytest.mark.slow
def test_training_longer_is_the_longer_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the middle of a warm-up: the learning rate is recomputed, and comes out as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    warmup = {"scheduler": {"name": "constant_with_warmup", "t_warmup": "5ba"}}
    go_on(tmp_path, data, "max_duration=3ba", **warmup)
    go_on(tmp_path, data, **warmup)
    go_on(tmp_path, data, "run_name=whole", **warmup)
    rates = [logged(tmp_path, "lr-AdamW/group0", name) for name in ("tiny", "whole")]
    assert rates[0] == rates[1]
    assert runs.read_metrics(tmp_path) == runs.read_metrics(tmp_path, "whole")


@pytest.mark.slow
def test_a_run_that_a_stopper_ended_is_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Also where its end is made up; a longer max_duration goes on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/enough.py").write_text(ENOUGH)
    enough: dict[str, Any] = {"callbacks": {"enough": {}}, "max_duration": "20ba"}
    go_on(tmp_path, data, **enough)
    assert sorted(runs.read_metrics(tmp_path)) == [1, 2, 3]
    (tmp_path / "runs/tiny/finished.json").unlink()
    capsys.readouterr()
    go_on(tmp_path, data, **enough)
    assert "what is missing is made up" in capsys.readouterr().out
    go_on(tmp_path, data, **enough)
    assert "tiny is already finished (3ba, stopped before max_duration, with a l" in capsys.readouterr().out
    go_on(tmp_path, data, "max_duration=5ba")
    assert sorted(runs.read_metrics(tmp_path)) == [1, 2, 3, 4, 5]


ENOUGH = '''"""A stopper."""

from composer.core import Callback


class Enough(Callback):
    """Stop after three batches."""

    def batch_end(self, state, logger):
        if int(state.timestamp.batch) == 3:
            state.stop_training()
'''


@pytest.mark.slow
def test_a_freezing_that_was_dropped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    go_on(tmp_path, data, max_duration="2ba", algorithms={"layer_freezing": {"parts": ["encoder"]}})
    with pytest.raises(
        DataError, match=r"tensors are trained here that were frozen there \('encoder\."
    ) as caught:
        go_on(tmp_path, data, algorithms={})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_the_end_leaves_is_made_up(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = folder / "runs/tiny"
    assert json.loads((run / "finished.json").read_text())["batch"] == 6
    summary = json.loads((run / "summary.json").read_text())
    (run / "finished.json").unlink()  # killed between the last checkpoint and the end
    shutil.rmtree(run / "encoder")
    (run / "summary.json").unlink()
    go_on(folder, data)
    assert "what is missing is made up" in capsys.readouterr().out
    assert (run / "encoder/model.safetensors").exists()
    assert json.loads((run / "summary.json").read_text()) == summary
    go_on(folder, data)
    assert "tiny is already finished (6ba); nothing to do" in capsys.readouterr().out
    shutil.rmtree(run / "encoder")
    go_on(folder, data)
    assert (run / "encoder/model.safetensors").exists()
    mark = json.loads((run / "finished.json").read_text())
    assert {"data.train.local", "tokenizer.path"} == mark["inputs"].keys()
    (run / "finished.json").write_text(json.dumps(mark | {"inputs": {"data.train.local": "other"}}))
    with pytest.raises(DataError, match=r"tiny is finished, and what data\.train\.local names has changed"):
        go_on(folder, data)
