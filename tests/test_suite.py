"""Which runs a suite makes of encoders and tasks, and which it leaves as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lcl_composer import suite
from lcl_composer.entrants import read_entrants
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.inputs import digests_of
from lcl_composer.run_folder import RunFolder
from lcl_composer.suite import Job, command, is_finished, plan, run_jobs
from tests import runs

TIMM = "{name: timm, model_name: vit_base_patch32_clip_224, image_size: 16, model_args: {patch_size: 8}}"


def write_task(folder: Path, name: str = "task", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**runs.settings(folder, run_name=name), **changes}))
    return path


def test_a_suite_without_tasks_is_refused(tmp_path: Path) -> None:
    entrants = read_entrants([TIMM])
    with pytest.raises(ConfigError, match="no such folder"):
        plan(entrants, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no YAML"):
        plan(entrants, tmp_path)


def test_a_job_is_a_run_of_its_own_with_the_encoders_size(tmp_path: Path) -> None:
    write_task(tmp_path / "tiny", "second"), write_task(tmp_path / "tiny", "first")
    entrants = read_entrants([f"a={TIMM}"])
    jobs = plan(entrants, tmp_path / "tiny", (3, 4), ("data.max_tokens=48",))
    assert [(job.task.stem, job.seed) for job in jobs] == [
        ("first", 3),
        ("first", 4),
        ("second", 3),
        ("second", 4),
    ]
    assert jobs[0].run_name == f"tiny-first-a-{entrants[0].digest[:8]}-s3"
    run = jobs[0].composed.run
    assert (run.seed, run.data.train.shuffle_seed, run.data.image_size, run.data.max_tokens) == (3, 3, 16, 48)
    assert run.model.encoder.spec() == entrants[0].spec
    assert plan(entrants, tmp_path / "tiny")[0].run_name.endswith("-s17")
    alone = plan(entrants, tmp_path / "tiny/second.yaml", (3, 4))
    assert [job.run_name for job in alone] == [job.run_name for job in jobs[2:]]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/second.yaml").symlink_to(tmp_path / "tiny/second.yaml")
    assert {job.suite for job in plan(entrants, tmp_path / "mine")} == {"mine"}
    arguments = command(jobs[0])
    assert arguments[1:5] == ["-m", "lcl_composer", "train", str(jobs[0].task)]
    assert f"run_name={jobs[0].run_name}" in arguments
    assert command(jobs[0], 2)[1:4] == ["-n", "2", "-m"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "tiny", evaluation={"retrieval": {}}, data=data_of(tmp_path))
    return plan(read_entrants([TIMM]), tmp_path / "tiny")[0]


def data_of(folder: Path) -> dict[str, Any]:
    values = runs.settings(folder)["data"]
    return {**values, "eval": values["train"]}


def finish(job: Job, batches: int = 20) -> Path:
    """What a run leaves that has come to its end."""
    folder = Path("runs") / job.run_name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(job.composed.to_yaml())
    (folder / "summary.json").write_text(json.dumps({"batches": batches, "retrieval": {"x/recall@1": 0.5}}))
    run = job.composed.run
    inputs = digests_of(run.model_dump(mode="json"))
    RunFolder(job.run_name, folder, "").note_end(batches, run.evaluation, inputs)
    return folder


def test_a_finished_task_is_not_run_again(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert not is_finished(job)
    finish(job)
    assert is_finished(job)
    monkeypatch.setattr(suite, "_launch", lambda *_: pytest.fail("it was launched"))
    run_jobs([job])
    assert "finished before, in runs/tiny-task-" in capsys.readouterr().out


def test_a_run_with_other_settings_is_not_taken_for_it(job: Job) -> None:
    folder = finish(job)
    again = Job(job.suite, job.task, job.entrant, settings=("optimizer.lr=0.5", "progress_bar=true"))
    with pytest.raises(DataError, match=r"was trained with optimizer\.lr 0\.001 \(now 0\.5\); remove it"):
        is_finished(again)
    measured = Job(job.suite, job.task, job.entrant, settings=("evaluation.retrieval.max_images=9",))
    assert not is_finished(measured)  # the run measures anew, without training
    (folder / "summary.json").write_text("{")
    assert not is_finished(job)


@pytest.mark.parametrize(
    "setting",
    [
        "data.train.num_workers=3",
        "data.eval.download_retry=3",
        "data.train.cache_limit=1gb",
        "dist_timeout=9",
    ],
)
def test_what_changes_no_number_may_differ(job: Job, setting: str) -> None:
    finish(job)
    assert is_finished(Job(job.suite, job.task, job.entrant, settings=(setting,)))


def images(folder: Path, content: bytes = b"picture") -> str:
    (folder / "cat").mkdir(parents=True, exist_ok=True)
    (folder / "cat/1.png").write_bytes(content)
    return str(folder)


def test_a_run_on_other_files_is_not_taken_for_it(job: Job) -> None:
    """But one that was measured before such was noted is."""
    Path("eval").mkdir()
    Path("eval/index.json").write_text('{"shards": [1]}')
    Path("bert").mkdir()
    Path("bert/config.json").write_text("{}")
    of_task = [
        "data.eval.local=eval",
        "tokenizer={name: transformers, pretrained: bert}",
        "model.language_model={name: transformers, pretrained: bert}",
        f"evaluation={{zero_shot: {{images: {images(Path('val'))}}}}}",
    ]
    task = Job(job.suite, job.task, job.entrant, settings=of_task)
    mark = finish(task) / "finished.json"
    assert is_finished(task)
    changed = {
        "data.eval.local": Path("eval/index.json"),
        "evaluation.zero_shot.images": Path("val/cat/1.png"),
        "model.language_model.pretrained, tokenizer.pretrained": Path("bert/model.safetensors"),
    }
    for key, file in changed.items():
        before = file.read_bytes() if file.exists() else b""
        file.write_bytes(b"{} ")
        with pytest.raises(DataError, match=rf"is finished, and what {key} names has changed since: bring"):
            is_finished(task)
        file.write_bytes(before) if before else file.unlink()
    assert is_finished(task)
    Path("eval/index.json").write_text("{}")
    noted = json.loads(mark.read_text())
    mark.write_text(json.dumps({key: value for key, value in noted.items() if key != "inputs"}))
    assert is_finished(task)


def test_an_encoder_that_was_moved_is_the_same_one(job: Job) -> None:
    exported = [replace(job.entrant, spec={"name": "exported", "folder": place}) for place in "ab"]
    before, now = (Job(job.suite, job.task, entrant) for entrant in exported)
    finish(before)
    assert is_finished(now)


def test_the_others_go_on_where_one_fails(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    broken = write_task(job.task.parent, "broken", optimizer={"name": "none"})
    jobs = [Job(job.suite, broken, job.entrant), job, Job(job.suite, job.task, job.entrant, seed=3)]
    outcomes = iter([(2, "error: runs are out of luck"), (0, "")])
    monkeypatch.setattr(suite, "_launch", lambda *_: next(outcomes))
    run_jobs(jobs)
    assert "unknown optimizer 'none'" in jobs[0].failure
    assert "\n" not in jobs[0].failure
    assert [job.failure for job in jobs[1:]] == ["runs are out of luck", ""]
    assert "[1/3] broken of" in capsys.readouterr().out


def test_a_run_that_was_asked_to_stop_ends_the_suite(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_launch", lambda *_: (143, ""))
    with pytest.raises(SystemExit) as stopped:
        run_jobs([job, job])
    assert stopped.value.code == 143


def test_what_a_training_says_is_passed_on_and_its_reason_kept(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lines = "print('step 1'); print('error: no data'); print('later'); raise SystemExit(2)"
    monkeypatch.setattr(suite, "command", lambda *_: [suite.sys.executable, "-c", lines])
    assert suite._launch(job, 1) == (2, "error: no data")
    assert capsys.readouterr().out == "step 1\nerror: no data\nlater\n"
