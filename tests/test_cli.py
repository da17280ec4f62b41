from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.commands.check import model_sizes
from lcl_composer.config import compose

YAMLS = Path(__file__).parents[1] / "yamls"
LAION = str(YAMLS / "pretrain" / "vit_b32_laion.yaml")


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.setenv("COLUMNS", "200")


def lcl(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def row(output: str, first: str) -> list[str]:
    """Return the cells of the table row that begins with a word."""
    lines = [line for line in output.splitlines() if line.startswith(f"│ {first} ")]
    assert len(lines) == 1, output
    return [cell.strip() for cell in lines[0].strip("│").split("│")]


def test_check_prints_values_sources_and_sizes() -> None:
    output = lcl("check", LAION, "seed=3", "device_train_microbatch_size=16", "--ranks", "8")
    assert row(output, "seed")[1:] == ["3", "command line"]
    assert row(output, "data.train.local")[1] == "/data/laion"
    assert row(output, "optimizer.lr")[2].endswith("lcl.yaml:3")
    assert row(output, "precision")[1:] == ["null", "default"]
    assert row(output, "encoder")[1] == "87,456,000"
    parts = [
        int(row(output, part)[1].replace(",", ""))
        for part in ("encoder", "pooler", "language_model", "heads")
    ]
    assert row(output, "total")[1] == f"{sum(parts):,}"
    assert row(output, "documents")[1] == "8,192 (1,024 a rank)"
    assert row(output, "tokens, at most")[1] == f"{8192 * 128:,}"
    assert row(output, "images, at most")[1] == "16,384 (2 a document)"
    assert row(output, "effective negatives")[1] == "the images of 128 documents (microbatch 16 x 8 ranks)"
    assert row(output, "work of the ranks")[1].startswith(
        "documents as they come: no sizes.npy in /data/laion"
    )


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("clip", lambda tokens, an_image: 1),
        ("blip2", lambda tokens, an_image: 1),
        ("flamingo", lambda tokens, an_image: tokens - 1),
        ("emu", lambda tokens, an_image: tokens // (an_image + 2)),
        ("masked", lambda tokens, an_image: (tokens - 1) // (an_image + 2)),
    ],
)
def test_check_asks_the_methods_layout_for_its_images(name: str, most: Callable[[int, int], int]) -> None:
    run = compose(YAMLS / "methods" / f"{name}.yaml").run
    _, an_image, images, _ = model_sizes(run)
    assert images == most(run.data.max_tokens, an_image)


def test_check_counts_without_a_tokenizer_that_is_not_trained_yet(tmp_path: Path) -> None:
    output = lcl("check", str(YAMLS / "quickstart.yaml"), f"tokenizer.path={tmp_path}/absent.json")
    assert "without the vocabulary's rows" in output
    assert row(output, "encoder")[1].replace(",", "").isdigit()


@pytest.mark.parametrize(
    ("model", "encoder", "tokens"),
    [  # OpenCLIP's visual towers without their output projections
        ("vit_b32", 87_849_216 - 768 * 512, 49),
        ("vit_b16", 86_192_640 - 768 * 512, 196),
        ("vit_l14", 303_966_208 - 1024 * 768, 256),
        ("tiny", 823_040, 36),
    ],
)
def test_every_model_builds_on_the_meta_device(tmp_path: Path, model: str, encoder: int, tokens: int) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(f"extends: [{LAION}, {YAMLS}/model/{model}.yaml]\n")
    room = ["data.max_tokens=261", "model.language_model.max_position_embeddings=261"]
    sizes, tokens_per_image, _, note = model_sizes(compose(experiment, room).run)
    assert (sizes["encoder"], tokens_per_image, note) == (encoder, tokens, "")


def test_problems_are_printed_without_a_traceback() -> None:
    output = lcl("check", LAION, "seeed=3", "lr=1", code=2)
    assert output.startswith("error: 2 problems in the configuration:\n  command line: ")
    assert "Traceback" not in output


def test_train_checks_before_it_starts() -> None:
    output = lcl("train", LAION, "seeed=3", code=1)
    assert output == "error: command line: seeed: unknown key; did you mean 'seed'?\n"


def test_check_refuses_ranks_that_do_not_divide() -> None:
    assert "do not divide over 3 ranks; use 8190 or 8193" in lcl("check", LAION, "--ranks", "3", code=2)


def test_list_shows_parameters_and_survives_a_broken_dropin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "broken_for_a_test.py").write_text("import no_such_package\n")
    output = lcl("list", "callbacks")
    assert row(output, "speed_monitor")[1] == "window_size: 100"
    assert "throughput" in row(output, "speed_monitor")[2]
    words = output.partition("broken_for_a_test")[2].replace("│", " ").split()  # cells fold where they must
    assert "cannot be imported" in " ".join(words)
    assert "monitor (needed)" in row(output, "early_stopper")[1]


def test_list_without_a_kind_prints_the_kinds() -> None:
    assert "cosine_with_warmup" in row(lcl("list"), "schedulers")[1]
    assert "did you mean 'callbacks'?" in lcl("list", "calbacks", code=2)


def test_schema_goes_to_a_file_or_the_terminal(tmp_path: Path) -> None:
    lcl("schema", str(tmp_path / "schema.json"))
    assert json.loads(lcl("schema")) == json.loads((tmp_path / "schema.json").read_text())
    assert "cannot be written: No such file" in lcl("schema", str(tmp_path / "absent/x.json"), code=2)


def test_convert_runs_a_converter_of_the_registry(tmp_path: Path) -> None:
    source = tmp_path / "stamps"
    source.mkdir()
    for index in range(3):
        Image.new("RGB", (80, 80), (index * 80, 0, 0)).save(source / f"{index}.png")
        (source / f"{index}.txt").write_text(f"stamp number {index}\n")
    Image.new("RGB", (8, 8)).save(source / "icon.png")
    (source / "icon.txt").write_text("an icon\n")
    output = lcl(
        "convert", "captions", str(source), str(tmp_path / "out"), "--no-progress", "--min-side", "32"
    )
    assert row(output, "documents kept")[1] == "3"
    assert list((tmp_path / "out").rglob("index.json"))


def test_convert_takes_its_options_from_the_converter() -> None:
    output = lcl("convert", "html", "--help")
    assert "--min-words" in output
    assert "Pages with fewer words are dropped." in output
    assert "unknown converter 'htm'; did you mean 'html'?" in lcl("convert", "htm", "a", "b", code=2)
    assert "no such folder" in lcl("convert", "html", "absent", "out", code=2)


def test_verbs_that_do_not_train_do_without_torch_and_composer() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from lcl_composer.cli import app\n"
        "for verb in (['schema'], ['list'], ['list', 'nope']):\n"
        "    assert CliRunner().invoke(app, verb).exit_code in (0, 2)\n"
        "print([m for m in ('torch', 'composer') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_check_says_what_a_new_name_drops() -> None:
    assert "drops what was set for 'cosine_with_warmup': t_warmup" in lcl(
        "check", LAION, "scheduler.name=constant"
    )


@pytest.mark.parametrize("columns", ["80", None])
def test_check_cuts_nothing(monkeypatch: pytest.MonkeyPatch, columns: str | None) -> None:
    monkeypatch.delenv("COLUMNS")
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    local = "/data/" + "a_long_name_of_a_folder/" * 5
    output = lcl("check", LAION, f"data.train.local={local}")
    assert "…" not in output
    assert (local in output) == (columns is None)
    cells = [line.strip("│").split("│")[1].strip() for line in output.splitlines() if line.count("│") == 4]
    assert local in "".join(cells)


def test_check_takes_no_name_for_markup() -> None:
    streams = "data.train={local: null, streams: {'[/red]': {local: /x}}}"
    assert "data.train.streams.[/red].local" in lcl("check", LAION, streams)


def test_check_for_another_device() -> None:
    arguments = ("check", LAION, "precision=amp_bf16")
    assert row(lcl(*arguments, "--device", "gpu"), "precision")[1] == "amp_bf16"
    assert "precision: amp_bf16 needs a GPU" in lcl(*arguments, "--device", "cpu", code=2)


def test_help_is_for_those_who_use_it() -> None:
    opening = lcl("--help").partition("Options")[0]
    assert "Pre-train vision encoders" in opening
    assert "import" not in opening
