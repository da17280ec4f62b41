"""Every converter of the registry as a command."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.commands.convert import ConvertGroup
from lcl_composer.registry import converters
from tests.convert.samples import picture
from tests.convert.tars import write_folder


@pytest.mark.parametrize("kind", converters.names())
def test_every_option_is_explained(kind):
    command = ConvertGroup(name="convert").get_command(None, kind)
    source, out, *options = [p for p in command.params if p.name != "help"]
    assert (source.name, out.name) == ("source", "out")
    assert {"min_side", "resize", "verify", "held_out", "workers", "work"} <= {o.name for o in options}
    assert [p.name for p in (source, out, *options) if not p.help] == []


def test_options_reach_source_and_engine(tmp_path):
    folder = write_folder(tmp_path / "laion", 1, 3)
    arguments = ["--language", "en", "--language", "fr", "--min-similarity", "0.1", "--shard-size", "4096"]
    done = CliRunner().invoke(
        app, ["convert", "img2dataset", str(folder), str(tmp_path / "out"), "--no-progress", *arguments]
    )
    assert done.exit_code == 0, done.output
    options = json.loads((tmp_path / "out/conversion.json").read_text())["options"]
    assert (options["language"], options["min_similarity"], options["shard_size"]) == (
        ["en", "fr"],
        0.1,
        4096,
    )


def test_an_option_not_given_is_none_and_no_empty_list(tree, tmp_path):
    source = tree({"a.png": picture(), "t.jsonl": '{"image": "a.png", "caption": "A."}\n'})
    done = CliRunner().invoke(app, ["convert", "table", str(source / "t.jsonl"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out/conversion.json").read_text())["options"]["language"] is None
