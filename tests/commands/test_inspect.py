"""`lcl inspect`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.commands.inspect import bars, viewer_of_run
from lcl_composer.data.document import Document, Text
from lcl_composer.data.image import Augmentation
from lcl_composer.data.tokenizer import train_bpe
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.synthetic.shapes import ShapesGenerator
from tests import runs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    generator = ShapesGenerator(documents=12)
    with DocumentWriter(folder / "set") as writer:
        for document in generator.documents():
            writer.write(document)
        writer.write(Document("x\x1b[31m[red]", "here", (Text("a text [/b] \x1b[0m and so on"),)))
    train_bpe(generator.texts(), 400, folder / "bpe.json")
    return folder


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.output


def test_the_summary(shapes):
    output = run(shapes / "set", "--documents", 13, "--tokens-per-image", 16, "--max-tokens", 96)
    assert "Computed on all 13 documents." in output
    assert "Images in a pair" in output
    assert "no conversion.json" in output
    assert "\x1b" not in output
    assert "x�[31m[red]" in output


def test_the_page_with_another_tokenizer(shapes, tmp_path):
    page = tmp_path / "new/page.html"
    output = run(shapes / "set", "--html", page, "--tokenizer", shapes / "bpe.json", "--documents", 3)
    assert "3 documents shown" in " ".join(output.split())
    html = page.read_text(encoding="utf-8")
    assert html.count("<article") == 3
    assert "BPETokenizer" in html
    arguments = ["inspect", str(shapes / "set"), "--html", str(tmp_path), "--documents", "1", "--sample", "1"]
    done = CliRunner().invoke(app, arguments)
    assert "cannot be written: Is a directory" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no data set"),
        (["nowhere", "--tokenizer", "none.json"], "no file none.json"),
        (["nowhere", "--max-tokens", "20"], "cannot hold an image"),
    ],
)
def test_errors_are_one_line(arguments, message):
    done = CliRunner().invoke(app, ["inspect", *arguments])
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def test_bars():
    assert bars({1: 1, 2: 8, 4: 4}) == "▁█ ▄"
    assert bars({}) == ""


def test_a_runs_yaml_says_what_the_flags_say(shapes, tmp_path):
    values = runs.settings(shapes, tokenizer={"name": "bpe", "path": str(shapes / "bpe.json")})
    path = runs.write_yaml(tmp_path, values)
    output = run(shapes / "set", "--config", path, "--documents", 13)
    flags = ["--tokenizer", shapes / "bpe.json", "--tokens-per-image", 4]
    flags += ["--max-tokens", 64, "--image-size", 16]
    assert output == run(shapes / "set", *flags, "--documents", 13)
    both = ["inspect", str(shapes / "set"), "--config", str(path), "--max-tokens", "64"]
    refused = CliRunner().invoke(app, both)
    assert "--max-tokens: --config says it already" in refused.output


def test_a_runs_augmentation_is_shown(shapes, tmp_path):
    values = runs.settings(shapes, tokenizer={"name": "bpe", "path": str(shapes / "bpe.json")})
    values["data"] |= {"crop_scale": [0.08, 1.0], "flip_probability": 0.5}
    path = runs.write_yaml(tmp_path, values)
    viewer, _ = viewer_of_run(path, set(), 0)
    assert viewer.augmentation == Augmentation((0.08, 1.0), 0.5)
    output = run(shapes / "set", "--config", path, "--documents", 1)
    assert "crop_scale 0.08 to 1, flip_probability 0.5" in " ".join(output.split())


def test_a_terminal_that_knows_ascii_only(shapes):
    done = CliRunner(charset="ascii").invoke(app, ["inspect", str(shapes / "set"), "--documents", "1"])
    assert done.exit_code == 0, done.exception
    assert "?" in done.output
