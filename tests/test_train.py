"""Whole runs in this process: exact resume, odd data, one-line errors (launched ones: test_launched.py)."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from safetensors.torch import load_file, save_file

from lcl_composer.build import build_trainer
from lcl_composer.checkpoint import only_safe_loads, read_model_state
from lcl_composer.config import compose
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import DataError, LCLError
from lcl_composer.export import export_encoder, export_run, load_encoder
from lcl_composer.methods.build import build_model
from lcl_composer.train import train
from tests import runs

pytestmark = pytest.mark.slow

DOCUMENTS = [runs.made_up(index) for index in range(34)]  # 8 batches of 4 an epoch, 2 documents left over


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"), DOCUMENTS)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own to run in; no thread count, switch or shared memory left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")  # so that it is put back
    only_safe_loads()  # as train() does
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.collect()
    clean_shared_memory()


class Stop(Exception):
    """The crash of a run."""


class Watch(Callback):
    """Writes down the ids of each batch and crashes before batch ``crash_at``."""

    def __init__(self, crash_at: int | None = None):
        self.ids: dict[int, list[str]] = {}
        self.crash_at = crash_at

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.crash_at:
            raise Stop
        self.ids[int(state.timestamp.batch)] = list(state.batch["ids"])


def fit(values: dict[str, Any], crash_at: int | None = None) -> Watch:
    """Compose, build and train in the working directory."""
    watch = Watch(crash_at)
    trainer = build_trainer(compose(runs.write_yaml(Path.cwd(), values), []))
    trainer.state.callbacks.append(watch)
    try:
        trainer.fit()
    except Stop:
        assert crash_at is not None
    finally:
        trainer.close()
    return watch


def with_dropout(data: Path, workers: int, **changes: Any) -> dict[str, Any]:
    """Dropout in both towers and drop path: every source of randomness in a step is on."""
    values = runs.settings(data, save_interval="2ba", **changes)
    values["model"]["encoder"]["model_args"] |= {"proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    values["model"]["language_model"]["model_args"] = {"dropout": 0.1}
    values["data"]["train"]["num_workers"] = workers
    return values


def weights_of(folder: Path, name: str = "latest-rank0.pt") -> dict[str, torch.Tensor]:
    return read_model_state(folder / "runs/tiny/checkpoints" / name)


def assert_equal_runs(one: Path, other: Path) -> None:
    """Bitwise: losses of every batch and the final weights."""
    losses = runs.read_metrics(one)
    assert list(losses) == list(range(1, 21))
    assert runs.read_metrics(other) == losses
    expected, found = weights_of(one), weights_of(other)
    assert expected.keys() == found.keys()
    assert not [name for name in expected if not torch.equal(expected[name], found[name])]


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        watch = fit(with_dropout(data, workers=0))
        torch.set_num_threads(threads)
    assert list(watch.ids) == list(range(20))
    return folder, watch


@pytest.mark.parametrize(
    ("workers", "crash_at"), [(0, 10), (2, 10), (0, 8), (2, 16)], ids=["0 mid", "2 mid", "0 end", "2 end"]
)
def test_20_steps_equal_10_and_resume_and_10(
    uninterrupted: tuple[Path, Watch], data: Path, tmp_path: Path, workers: int, crash_at: int
):
    """Crashes in mid-epoch and where an epoch ends (8 and 16), with a checkpoint every second batch."""
    whole, watched = uninterrupted
    values = with_dropout(data, workers)
    first = fit(values, crash_at)
    assert list(first.ids) == list(range(crash_at))
    second = fit(values)
    assert list(second.ids) == list(range(crash_at, 20))
    assert {**first.ids, **second.ids} == watched.ids
    assert_equal_runs(whole, tmp_path)


def test_batches_lost_between_checkpoint_and_crash_are_trained_again(
    uninterrupted: tuple[Path, Watch], data: Path, tmp_path: Path
):
    values = with_dropout(data, 0)
    fit(values, crash_at=7)
    second = fit(values)
    assert list(second.ids) == list(range(6, 20))
    assert_equal_runs(uninterrupted[0], tmp_path)


def test_dropout_is_on_and_another_seed_gives_another_run(uninterrupted: tuple[Path, Watch], data: Path):
    """So that the tests of resume test something."""
    losses = runs.read_metrics(uninterrupted[0])
    values = runs.settings(data, save_interval="20ba", max_duration="1ba")
    fit(values)
    assert runs.read_metrics(Path.cwd())[1] != losses[1]


def test_microbatches_change_no_generation_loss(data: Path, tmp_path: Path):
    options: dict[str, Any] = {"method": {"name": "lcl", "contrastive_weight": 0.0}, "max_duration": "4ba"}
    fit(runs.settings(data, **options))
    fit(runs.settings(data, **options, device_train_microbatch_size=1, run_name="micro"))
    whole, micro = runs.read_metrics(tmp_path), runs.read_metrics(tmp_path, "micro")
    assert list(whole) == list(micro) == [1, 2, 3, 4]
    for step, losses in whole.items():
        assert micro[step] == pytest.approx(losses, rel=1e-5)


def test_text_only_data_train_generation_and_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = runs.write_data(tmp_path / "text", [runs.made_up(i, images=False) for i in range(16)])
    with caplog.at_level(logging.WARNING):
        fit(runs.settings(folder, max_duration="8ba"))
    losses = runs.read_metrics(tmp_path)
    assert losses[8]["loss/train/generation"] < losses[1]["loss/train/generation"]
    assert all(row["loss/train/contrastive"] == 0 for row in losses.values())
    told = [record.getMessage() for record in caplog.records if "loss is 0" in record.getMessage()]
    assert len(told) == 1
    assert "batch 0 on rank 0 (document 'doc-" in told[0]


def test_images_with_text_before_them_are_not_told(data: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        fit(runs.settings(data, max_duration="1ba"))
        values = runs.settings(
            data, max_duration="1ba", run_name="off", method={"name": "lcl", "contrastive_weight": 0.0}
        )
        values["data"]["min_context_tokens"] = 60
        fit(values)
    assert "loss is 0" not in caplog.text


def test_bad_samples_do_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """An image that cannot be decoded, a document without text, one longer than the context."""
    broken = [
        Document("broken", "page.html", (Text("red"), Image(b"no image"), Text("blue"))),
        Document("empty", "page.html", (Image(b""),)),
        Document("long", "page.html", (Text("green " * 200), Image(b"beyond the context"), Text("red"))),
    ]
    folder = runs.write_data(tmp_path / "bad", [*broken, *(runs.made_up(i) for i in range(13))])
    with caplog.at_level(logging.WARNING):
        watch = fit(runs.settings(folder, max_duration="1ep"))
    assert sorted(i for ids in watch.ids.values() for i in ids)[:2] == ["broken", "doc-000"]
    assert len(watch.ids) == 4
    assert "skipped document 'broken', image 0: cannot decode" in caplog.text
    assert "page.html" in caplog.text
    assert "document 'empty'" in caplog.text
    assert "'long'" not in caplog.text
    assert len(runs.read_metrics(tmp_path)) == 4


def unreadable(count: int) -> list[Document]:
    return [Document(f"bad-{i}", "x", (Text("red"), Image(b"no image"))) for i in range(count)]


def test_a_batch_of_bad_samples_only(tmp_path: Path):
    folder = runs.write_data(tmp_path / "bad", [*unreadable(4), *(runs.made_up(i) for i in range(4))])
    values = runs.settings(folder, max_duration="2ba")
    values["data"]["train"]["shuffle"] = False
    fit(values)
    losses = [row["loss/train/total"] for row in runs.read_metrics(tmp_path).values()]
    assert losses[0] == 0 < losses[1]


@pytest.mark.parametrize("duration", ["1ba", "1ep"])
def test_a_run_of_bad_samples_only_is_an_error(tmp_path: Path, duration: str):
    folder = runs.write_data(tmp_path / "bad", unreadable(8))
    with pytest.raises(DataError, match=r"data\.train: all [48] samples so far are bad"):
        fit(runs.settings(folder, max_duration=duration))


def test_too_many_bad_samples_end_the_run(tmp_path: Path):
    folder = runs.write_data(tmp_path / "bad", [*unreadable(12), *(runs.made_up(i) for i in range(100))])
    with pytest.raises(DataError, match=r"samples are bad, more than data\.max_bad_fraction = 0\.01"):
        fit(runs.settings(folder, max_duration="1ep"))


def another_architecture(data: Path, **changes: Any) -> dict[str, Any]:
    values = runs.settings(data, **changes)
    values["model"]["language_model"]["num_hidden_layers"] = 1
    return values


def test_resuming_another_architecture(data: Path):
    fit(runs.settings(data, max_duration="1ba"))
    with pytest.raises(
        DataError, match=r"ep0-ba1-rank0\.pt: another architecture.*choose another run_name"
    ) as caught:
        fit(another_architecture(data))
    assert "\n" not in str(caught.value)


def test_load_path(data: Path, tmp_path: Path):
    """It starts a new run from old weights, at batch 0; what does not fit or is not there is told."""
    fit(runs.settings(data, max_duration="3ba"))
    path = str(tmp_path / "runs/tiny/checkpoints/latest-rank0.pt")
    watch = fit(runs.settings(data, max_duration="1ba", load_path=path, run_name="next"))
    assert list(watch.ids) == [0]
    start = read_model_state(path)
    after = read_model_state(tmp_path / "runs/next/checkpoints/latest-rank0.pt")
    assert torch.equal(after["pooler.k.weight"], start["pooler.k.weight"])  # the first warm-up step has lr 0
    with pytest.raises(DataError, match=r"latest-rank0\.pt: another architecture.*mend load_path"):
        fit(another_architecture(data, load_path=path, run_name="other"))
    with pytest.raises(DataError, match=r"nowhere\.pt: no such file"):
        fit(runs.settings(data, load_path="nowhere.pt", run_name="missing"))


def test_a_frozen_encoder_from_elsewhere(
    uninterrupted: tuple[Path, Watch], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It is told, stays the same, is recognised in a resume, and is in the checkpoint without its folder."""
    first = shutil.copytree(uninterrupted[0] / "runs/tiny/encoder", tmp_path / "first")
    values = runs.settings(data, max_duration="4ba", save_interval="2ba")
    values["model"]["encoder"] = {"name": "exported", "folder": str(first)}
    values["algorithms"] = {"layer_freezing": {"parts": ["encoder"]}}
    train(path := runs.write_yaml(tmp_path, values), [])
    assert (
        f"encoder: the exported {first} (timm's vit_base_patch32_clip_224), weights "
        in capsys.readouterr().out
    )
    features = json.loads((tmp_path / "runs/tiny/summary.json").read_text())["features"]
    last = tmp_path / "runs/tiny/checkpoints/latest-rank0.pt"
    original, _ = load_encoder(first)
    assert features["weights"] == original.weights
    assert load_encoder("runs/tiny/encoder")[0].weights == original.weights
    other = build_model(compose(path, []).run, 300)
    export_encoder(other, compose(path, []).run, tmp_path / "elsewhere")
    damage = load_file(first / "model.safetensors")
    damage["cls_token"] += 1.0
    save_file(damage, first / "model.safetensors")
    with pytest.raises(DataError, match=r"another encoder \(model.encoder's .*first holds other weights\)"):
        train(path, ["max_duration=6ba"])
    train(path, ["max_duration=6ba", f"model.encoder.folder={tmp_path / 'elsewhere'}"])
    shutil.rmtree(first)
    assert load_encoder(export_run(last, tmp_path / "out"))[0].weights == original.weights


def test_resuming_a_damaged_checkpoint(data: Path, tmp_path: Path):
    fit(runs.settings(data, max_duration="1ba"))
    path = (tmp_path / "runs/tiny/checkpoints/latest-rank0.pt").resolve()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"ep0-ba1-rank0\.pt: cannot be read, it is truncated"):
        fit(runs.settings(data))


def test_missing_data_folder(data: Path, tmp_path: Path):
    values = runs.settings(data)
    values["data"]["train"]["local"] = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.train\.local: no data set in .*nowhere"):
        train(runs.write_yaml(tmp_path, values), [])


def test_finished_run_says_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = runs.write_yaml(tmp_path, runs.settings(data, max_duration="1ba"))
    train(path, [])
    before = weights_of(tmp_path)
    capsys.readouterr()
    run = tmp_path / "runs/tiny"
    recorded = (run / "config.yaml").read_bytes(), sorted(run.iterdir())
    train(path, ["save_interval=3ba"])
    out = capsys.readouterr().out
    assert "tiny is already finished" in out
    assert "goes on from" not in out
    with pytest.raises(
        DataError, match=r"training has ended, and optimizer\.lr is 0\.001 there and 1\.0 here: "
    ):
        train(path, ["optimizer.lr=1.0"])
    assert recorded == ((run / "config.yaml").read_bytes(), sorted(run.iterdir()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(tmp_path).items())
    shutil.rmtree(tmp_path / "runs")


def test_a_crash_is_one_line_and_the_progress_is_lines(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What is not a terminal gets no progress bar."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/failing_at_two.py").write_text(FAILING)
    values = runs.settings(data, max_duration="4ba", progress_bar=True, callbacks={"failing_at_two": {}})
    with pytest.raises(LCLError, match=r"^RuntimeError: DataLoad.*; the traceback is in runs/tiny/crash-ra"):
        train(runs.write_yaml(tmp_path, values), [])
    assert "failing_at_two.py" in (tmp_path / "runs/tiny/crash-rank0.log").read_text()
    output = capsys.readouterr()
    assert "batch 1, 25%: " in output.out
    assert "\x1b" not in output.out + output.err


FAILING = '''"""Fail."""

from composer.core import Callback


class FailingAtTwo(Callback):
    """Fail at the second batch."""

    def batch_start(self, state, logger):
        if state.timestamp.batch == 1:
            raise RuntimeError("DataLoaded nothing")
'''


def test_metrics_on_the_console_come_without_composers_box(data: Path, capsys: pytest.CaptureFixture[str]):
    fit(runs.settings(data, log_to_console=True, max_duration="2ba"))
    printed = capsys.readouterr().err
    assert printed.count("Train loss/train/total: ") == 2
    assert "***" not in printed
    assert "node_name" not in printed
