"""A YAML from a stranger: no name or tag runs code, no bomb goes off, no secret gets into its settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.commands.check import print_check
from lcl_composer.config import compose
from lcl_composer.config.core_schema import parse_yaml
from lcl_composer.config.environment import is_secret
from lcl_composer.config.reach import reach
from lcl_composer.errors import ConfigError
from lcl_composer.report.run import read_run
from tests.runs import settings, write_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
BOMBS = {
    "laughs": (LAUGHS, "its aliases make more than 100,000 values of it"),
    "merges": (MERGES, "its aliases make more than 100,000 values of it"),
    "deep": ("a: " + "[" * 50_000, "it is nested too deep"),
    "deep mappings": ("".join(f"{' ' * i}a:\n" for i in range(100)), "it is nested too deep"),
    "deep aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 90)),
        "it is nested too deep",
    ),
    "itself": ("a: &a [*a]", "an alias stands inside what it stands for"),
    "number": ("a: " + "9" * 5000, "is no tag:yaml.org,2002:int"),
    "size": ("a: " + "x" * (1 << 20), "is over 1 MiB"),
    "python": ("a: !!python/object/apply:os.mkdir [ran]", "could not determine a constructor for the tag"),
    "name": ("a: !!python/name:os.system", "could not determine a constructor for the tag"),
    "module": ("a: !!python/module:os", "could not determine a constructor for the tag"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_and_tags_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str) -> None:
    text, message = BOMBS[bomb]
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        compose(Path("x.yaml"))
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()
    if bomb != "size":  # a run folder's config.yaml, which a report reads
        Path("run").mkdir()
        Path("run/config.yaml").write_text(text)
        run = read_run(Path("run"), "run")
        assert "config.yaml cannot be read" in run.notes[0]


NAMES = ["os.system", "os:system", "callbacks/../x", "../x", "x.y", "__init__", "/tmp/x", "x/y", "lr monitor"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_imports_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Only a plain file of ``callbacks/`` or ``methods/``, or what the tables list."""
    monkeypatch.chdir(tmp_path)
    for place in ("x.py", "callbacks/__init__.py", "callbacks/x/y.py", "methods/__init__.py"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text("import os\nos.mkdir('ran')\n")
    for key in ("callbacks", "loggers", "algorithms", "evaluation"):
        path = write_yaml(tmp_path, settings(tmp_path, **{key: {name: {}}}))
        with pytest.raises(ConfigError, match="unknown"):
            compose(path)
    for key in ("method", "tokenizer", "optimizer", "scheduler"):
        path = write_yaml(tmp_path, settings(tmp_path, **{key: {"name": name}}))
        with pytest.raises(ConfigError, match="unknown"):
            compose(path)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", ".x", "x\n", "", "..", "~", "x y", "$HOME"])
def test_a_run_stays_in_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="run_name"):
        compose(write_yaml(tmp_path, settings(tmp_path, run_name=name)))


@pytest.mark.parametrize("text", ["${eval:1}", "${python:os}", "${oc.decode:${nothing}}", "${oc.env}"])
def test_resolvers_are_those_of_omegaconf(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="cannot resolve"):
        compose(write_yaml(tmp_path, settings(tmp_path, load_path=text)))


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("ALIAS", "hf_0123456789")
    monkeypatch.setenv("REMOTE", "https://me:pa55@host/x")
    monkeypatch.setenv("DATA_ROOT", "/data")


SECRET: dict[str, dict[str, Any]] = {
    "named": {"load_path": "s3://bucket/${oc.env:HF_TOKEN}"},
    "named, with a default": {"load_path": "${oc.env:HF_TOKEN,x}"},
    "through another key": {"save_folder": "${oc.env:AWS_SECRET_ACCESS_KEY}", "load_path": "${save_folder}"},
    "by a name that is put together": {"run_name": "HF", "load_path": "${oc.env:${run_name}_TOKEN}"},
    "by a resolver that is put together": {"run_name": "oc.env", "load_path": "${${run_name}:HF_TOKEN}"},
    "under another name": {"loggers": {"wandb": {"tags": ["${oc.env:ALIAS}"]}}},
    "written out": {"load_path": "/x/hf_0123456789"},
    "in an address": {"load_path": "${oc.env:REMOTE}"},
    "in a signed address": {"load_path": "https://host/x.pt?X-Amz-Date=1&X-Amz-Signature=0af"},
}  # fmt: skip


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("way", SECRET)
def test_no_secret_gets_into_the_settings(tmp_path: Path, way: str) -> None:
    with pytest.raises(ConfigError, match=r"holds (the value of|a password or a signature)") as caught:
        compose(write_yaml(tmp_path, settings(tmp_path, **SECRET[way])))
    for secret in ("hf_0123456789", "wJalrXUtnFEMI", "pa55"):
        assert secret not in str(caught.value)


@pytest.mark.usefixtures("secrets")
def test_other_variables_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = settings(tmp_path, callbacks={"attention_maps": {}})
    values["data"]["train"] = {"local": "${oc.env:DATA_ROOT}/x", "remote": "s3://b/x"}
    values["save_folder"] = "${oc.env:NOWHERE,/scratch}/{run_name}"
    composed = compose(write_yaml(tmp_path, values))
    assert composed.variables == {"DATA_ROOT": ["data.train.local"], "NOWHERE": ["save_folder"]}
    rows = reach(composed)
    assert ("reads the variable", "DATA_ROOT (set), for data.train.local") in rows
    assert ("reads the variable", "NOWHERE (not set), for save_folder") in rows
    assert ("writes into", "/scratch/tiny") in rows
    assert ("writes into", "/data/x") in rows
    assert ("fetches or reads", "s3://b/x") in rows
    assert [Path(place).name for what, place in rows if what == "runs the code in"] == ["attention_maps.py"]
    assert os.environ["HF_TOKEN"] not in composed.to_yaml()


def test_check_prints_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", str(tmp_path))
    changes = {"tokenizer": {"name": "clip"}, "save_folder": "${oc.env:WHERE}/out"}
    print_check(write_yaml(tmp_path, settings(tmp_path, **changes)), [], 1, "cpu")
    assert "WHERE (set), for save_folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "secret"),
    [("HF_TOKEN", True), ("AWS_ACCESS_KEY_ID", True), ("WANDB_API_KEY", True), ("DB_PASSWORD", True),
     ("SLACK_WEBHOOK", True), ("GH_PAT", True), ("DATA_ROOT", False), ("PWD", False), ("HOME", False),
     ("PATH", False), ("KEYBOARD", False), ("AUTHOR", False), ("SLURM_JOB_ID", False)],
)  # fmt: skip
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_the_core_schema_still_reads_numbers() -> None:
    assert parse_yaml("a: " + "9" * 300) == {"a": int("9" * 300)}
