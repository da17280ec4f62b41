from __future__ import annotations

from pathlib import Path

import pytest

from lcl_composer.config import ComposedConfig, compose
from lcl_composer.errors import ConfigError

YAMLS = Path(__file__).parents[2] / "yamls"
EXPERIMENTS = sorted(
    path
    for path in YAMLS.rglob("*.yaml")
    if path.parent.name not in {"model", "data", "optim"} and path.name != "base.yaml"
)
BASE = YAMLS / "pretrain" / "vit_b32_laion.yaml"


@pytest.fixture(autouse=True)
def data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def experiment(tmp_path: Path, text: str, extends: tuple[str, ...] = ()) -> Path:
    files = ", ".join([str(BASE), *extends])
    return write(tmp_path / "experiment.yaml", f"extends: [{files}]\n{text}")


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(path, list(overrides))
    return str(caught.value)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(YAMLS)))
def test_every_experiment_composes(path: Path) -> None:
    overrides = ["data.train.local=/x"] if path.name == "pages_tiny.yaml" else []
    assert compose(path, overrides).run.run_name == path.stem


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(YAMLS)))
def test_experiments_are_short_and_open_with_their_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert len(lines) < 30
    assert f"composer train.py yamls/{path.relative_to(YAMLS)}" in comment
    assert all(word in comment for word in ("$schema=", "Hardware:", "Hours:", "Expected result:"))


@pytest.mark.parametrize("path", sorted(YAMLS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(YAMLS)))
def test_no_yaml_names_a_site(path: Path) -> None:
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    assert ": /" not in text
    assert "://" not in text


def test_authors_recipe() -> None:
    run = compose(YAMLS / "pretrain" / "vit_b32_mmc4.yaml").run
    assert run.optimizer.spec() == {
        "name": "adamw",
        "lr": 3e-4,
        "betas": [0.9, 0.98],
        "eps": 1e-6,
        "weight_decay": 0.2,
        "fused": True,
    }
    assert run.data.max_tokens == run.model.language_model.spec()["max_position_embeddings"] == 2048
    assert tuple(run.method.spec()[f"{name}_weight"] for name in ("contrastive", "generation")) == (0.1, 1.0)


def test_later_files_win_and_mappings_merge(tmp_path: Path) -> None:
    one = write(tmp_path / "one.yaml", "seed: 1\nmethod: {contrastive_weight: 0.5}\n")
    two = write(tmp_path / "two.yaml", "seed: 2\nmethod: {generation_weight: 0.5}\n")
    run = compose(experiment(tmp_path, "", (str(one), str(two)))).run
    assert run.seed == 2
    assert tuple(run.method.spec()[f"{name}_weight"] for name in ("contrastive", "generation")) == (0.5, 0.5)
    assert compose(experiment(tmp_path, "seed: 3", (str(one), str(two)))).run.seed == 3
    assert compose(experiment(tmp_path, "seed: 3", (str(one),)), ["seed=4"]).run.seed == 4


def test_lists_replace(tmp_path: Path) -> None:
    run = compose(experiment(tmp_path, "optimizer: {betas: [0.5, 0.6]}")).run
    assert run.optimizer.spec()["betas"] == [0.5, 0.6]
    assert run.optimizer.spec()["lr"] == 5e-4


def test_null_removes(tmp_path: Path) -> None:
    run = compose(
        experiment(tmp_path, "callbacks: {lr_monitor: null}\nseed: null"), ["optimizer.eps=null"]
    ).run
    assert set(run.callbacks) == {"speed_monitor"}
    assert run.seed == 17
    assert "eps" not in run.optimizer.spec()


def test_null_can_be_set_again(tmp_path: Path) -> None:
    run = compose(experiment(tmp_path, "callbacks: {lr_monitor: null}"), ["callbacks.lr_monitor={}"]).run
    assert set(run.callbacks) == {"speed_monitor", "lr_monitor"}


def test_overrides_are_read_as_yaml() -> None:
    run = compose(BASE, ["optimizer.lr=1e-4", "data.train.shuffle=false", "optimizer.betas=[0.9,0.95]"]).run
    assert run.optimizer.spec()["lr"] == 1e-4
    assert run.data.train.shuffle is False
    assert run.optimizer.spec()["betas"] == [0.9, 0.95]


def test_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    assert compose(experiment(tmp_path, "optimizer: {lr: 1e-4}")).run.optimizer.spec()["lr"] == 1e-4


def test_interpolation_follows_overrides() -> None:
    run = compose(BASE, ["model.encoder.image_size=96", "data.max_tokens=64"]).run
    assert run.data.image_size == 96
    assert run.model.language_model.spec()["max_position_embeddings"] == 64


def test_sources(tmp_path: Path) -> None:
    path = experiment(tmp_path, "seed: 3\ndata:\n  max_tokens: 64\n")
    composed = compose(path, ["global_train_batch_size=16"])
    assert composed.source("seed") == f"{path}:2"
    assert composed.source("data.max_tokens") == f"{path}:4"
    assert composed.source("global_train_batch_size") == "command line"
    assert composed.source("optimizer.lr").endswith("yamls/optim/lcl.yaml:3")
    assert composed.source("precision") == "default"


def test_the_resolved_yaml_composes_to_the_same_run(tmp_path: Path) -> None:
    composed: ComposedConfig = compose(BASE, ["data.eval={local: /x}"])
    again = compose(write(tmp_path / "config.yaml", composed.to_yaml()))
    assert again.run == composed.run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [absent.yaml]\n", "experiment.yaml:1: extends: no file"),
        ("seed: 1\nextends: base.yaml\n", "experiment.yaml:2: extends: must be a list of files"),
        ("seed: 1\nseed: 2\n", "experiment.yaml:2: not valid YAML: found duplicate key"),
        ("a: [1\n", "experiment.yaml:2: not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", "experiment.yaml:2: not valid YAML: expected a single document in the "),
        ("- 1\n", "experiment.yaml: must be a mapping"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(write(tmp_path / "experiment.yaml", text))


def test_cycles_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: [b.yaml]\n")
    write(tmp_path / "b.yaml", "extends: [a.yaml]\n")
    assert "a.yaml -> " in problems(tmp_path / "a.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "absent.yaml").endswith(
        "absent.yaml: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", "optimizer.betas=[1", "seed=", "seed= "])
def test_broken_overrides_are_named(override: str) -> None:
    assert f"command line: {override!r}" in problems(BASE, override)


def test_a_path_for_a_shell_is_refused() -> None:
    assert problems(BASE, "save_folder=~/x") == (
        "command line: save_folder: ~ stands for nothing here; write ${oc.env:HOME}/..."
    )
    assert "load_path: $SCRATCH stands for nothing here; write ${oc.env:SCRATCH}/..." in problems(
        BASE, "load_path=$SCRATCH/x.pt"
    )
    assert compose(BASE, ["save_folder=a~/$x"]).run.save_folder == "a~/$x"


def test_a_default_cannot_be_referred_to() -> None:
    assert "'precision' not found; only what a file or the command line sets can be" in problems(
        BASE, "run_name=${precision}"
    )


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCL_EMPTY", "")
    found = problems(BASE, "save_folder=${oc.env:LCL_EMPTY}/x")
    assert (
        "save_folder: cannot resolve ${oc.env:LCL_EMPTY}/x: the environment variable LCL_EMPTY is not"
        in found
    )


def test_a_component_of_another_name_drops_the_parameters_of_the_old_one(tmp_path: Path) -> None:
    path = experiment(tmp_path, "optimizer: {name: sgd, lr: 0.1, eps: null}\nscheduler: {name: constant}")
    composed = compose(path, ["optimizer.name=sgd"])
    assert composed.run.optimizer.spec() == {"name": "sgd", "lr": 0.1}
    assert composed.run.scheduler.spec() == {"name": "constant"}
    assert composed.notes == [
        "optimizer is 'sgd' now and drops what was set for 'adamw': betas, weight_decay, fused",
        "scheduler is 'constant' now and drops what was set for 'cosine_with_warmup': t_warmup",
    ]
    assert "optimizer.betas" not in composed.sources


def test_nested_parameters_of_the_old_component_are_dropped_too(tmp_path: Path) -> None:
    below = write(tmp_path / "below.yaml", "model: {encoder: {name: timm, model_args: {depth: 4}}}\n")
    text = "model: {encoder: {name: transformers, model_type: vit, model_args: {hidden_size: 64}}}"
    spec = compose(
        experiment(tmp_path, text, (str(below),)), ["data.image_size=224"]
    ).run.model.encoder.spec()
    assert spec == {"name": "transformers", "model_type": "vit", "model_args": {"hidden_size": 64}}


def test_the_same_name_again_drops_nothing(tmp_path: Path) -> None:
    composed = compose(experiment(tmp_path, "optimizer: {name: adamw, lr: 0.1}"))
    assert composed.run.optimizer.spec()["betas"] == [0.9, 0.98]
    assert composed.notes == []


@pytest.mark.parametrize(
    "order", [("optimizer.name=sgd", "optimizer.lr=0.1"), ("optimizer.lr=0.1", "optimizer.name=sgd")]
)
def test_the_order_of_overrides_does_not_matter(order: tuple[str, str]) -> None:
    assert compose(BASE, order).run.optimizer.spec() == {"name": "sgd", "lr": 0.1}
    assert compose(BASE, ["seed=1", "seed=2"]).run.seed == 2


def test_an_empty_mapping_over_a_full_one_is_refused(tmp_path: Path) -> None:
    path = experiment(tmp_path, "evaluation: {retrieval: {}}\ndata: {eval: {local: x}}")
    message = "evaluation: {} changes nothing, what is below stays; to remove it write evaluation=null"
    assert problems(path, "evaluation={}") == f"command line: {message}"
    assert compose(path, ["evaluation=null"]).run.evaluation == {}
    assert compose(path, ["callbacks.speed_monitor={}"]).run.callbacks["speed_monitor"]


@pytest.mark.parametrize("text", ["010", "0x0a", "0o12", "+10"])
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str) -> None:
    assert compose(experiment(tmp_path, f"seed: {text}")).run.seed == 10
    assert compose(BASE, [f"seed={text}"]).run.seed == 10


@pytest.mark.parametrize("text", ["1_6", "0b11", "1:30", "on", "yes"])
def test_words_of_yaml_1_1_are_strings(tmp_path: Path, text: str) -> None:
    assert f"seed: should be a valid integer, got {text!r}" in problems(experiment(tmp_path, f"seed: {text}"))
    assert f"seed: should be a valid integer, got {text!r}" in problems(BASE, f"seed={text}")
    assert compose(BASE, [f"run_name={text[0]}-{text[-1]}"]).run.seed == 17
