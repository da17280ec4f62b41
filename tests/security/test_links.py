"""Links in what a stranger hands over: nothing is read through them outside the folder that is named."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcl_composer.commands.inspect import print_inspection
from lcl_composer.convert.document_pairs import DocumentPairs
from lcl_composer.convert.engine import convert
from lcl_composer.convert.files import LINK_OUT
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.table import Table
from lcl_composer.entrants import read_entrants
from lcl_composer.errors import DataError
from lcl_composer.export import export_run, load_encoder
from lcl_composer.report.run import read_runs
from tests.convert.samples import picture, run
from tests.data.conftest import MakeDataset
from tests.export.taken import config_of, model_of
from tests.export.taken import write_run as write_trained
from tests.inspect.conftest import viewer
from tests.report.run_folders import write_run

LEADS_OUT = "a link that leads out of"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint and an exported encoder."""
    config = config_of()
    folder = write_trained(tmp_path_factory.mktemp("runs") / "tiny", config, model_of(config))
    export_run(folder, folder / "encoder")
    return folder


@pytest.fixture
def given(trained: Path, tmp_path: Path) -> Path:
    """The same, of a stranger."""
    return shutil.copytree(trained, tmp_path / "given")


def linked(path: Path) -> Path:
    """Let a link stand for a file or folder, and lead to it among the user's own; return where that is."""
    home = Path(str(path.parent).partition("given")[0]) / "home"
    home.mkdir(exist_ok=True)
    target = Path(shutil.move(path, home / path.name))
    path.symlink_to(target)
    return target


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints", "checkpoints/ep0-ba5-rank0.pt"])
def test_no_export_of_what_a_run_folder_links_to(given: Path, tmp_path: Path, name: str) -> None:
    linked(given / name)
    with pytest.raises(DataError, match=f"{LEADS_OUT} .*home/{Path(name).name}; if that is meant"):
        export_run(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_symlink_to_the_newest_checkpoint_is_followed_inside_alone(given: Path, tmp_path: Path) -> None:
    latest = given / "checkpoints/latest-rank0.pt"
    latest.symlink_to("ep0-ba5-rank0.pt")
    export_run(latest, tmp_path / "out")
    latest.unlink()
    latest.symlink_to(linked(given / "checkpoints/ep0-ba5-rank0.pt"))
    with pytest.raises(DataError, match=LEADS_OUT):
        export_run(latest, tmp_path / "other")


def test_a_save_folder_elsewhere_is_named(given: Path, tmp_path: Path, capsys: Any) -> None:
    place = shutil.move(given / "checkpoints", tmp_path / "mine")
    config = given / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("save_folder")]
    config.write_text("\n".join([*lines, f"save_folder: {place}"]))
    export_run(given, tmp_path / "out")
    assert f"note: export: {place}/ep0-ba5-rank0.pt, in the save_folder that" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pooler.safetensors"])
def test_an_exported_encoder_of_links(given: Path, tmp_path: Path, name: str) -> None:
    encoder = given / "encoder"
    linked(encoder / name)
    for read in (load_encoder, lambda folder: export_run(folder, tmp_path / "out")):
        with pytest.raises(DataError, match=LEADS_OUT):
            read(encoder)
    with pytest.raises(DataError, match=LEADS_OUT):
        read_entrants([str(encoder)])


def test_the_card_takes_nothing_from_a_link(given: Path, tmp_path: Path) -> None:
    secret = {"command": ["secret"], "git": {}, "packages": {}}
    (given / "environment.json").write_text(json.dumps(secret))
    assert "secret" in (export_run(given, tmp_path / "one") / "README.md").read_text()
    linked(given / "environment.json")
    assert "secret" not in (export_run(given, tmp_path / "two") / "README.md").read_text()


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "summary.json", "metrics.jsonl"])
def test_a_report_leaves_links_out_and_says_so(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path, "given", pictures=True)
    linked(folder / name)
    (found,) = read_runs([folder])
    assert f"{name} is a link out of the run folder and left out" in found.notes
    kept = {"config.yaml": found.config, "environment.json": found.environment}
    assert not {**kept, "summary.json": found.summary, "metrics.jsonl": found.rows}[name]


def test_a_report_draws_no_picture_through_a_link(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "given", pictures=True)
    (found,) = read_runs([folder])
    assert found.attention_maps
    linked(folder / "attention_maps")
    assert not read_runs([folder])[0].attention_maps


def test_an_inspection_names_links(tmp_path: Path, make_dataset: MakeDataset, capsys: Any) -> None:
    folder = Path(shutil.move(make_dataset(4), tmp_path / "given"))
    target = linked(next(folder.glob("*.zstd")))
    print_inspection(folder, None, viewer(), documents=1, sample=4, image_size=32)
    printed = "".join(capsys.readouterr().out.split())
    assert f"isalinkoutofthedataset,to{target}" in printed
    with pytest.raises(DataError, match=LEADS_OUT):
        convert(DocumentPairs(folder), str(tmp_path / "out"), progress=False, workers=1)


def test_no_table_and_no_tar_is_converted_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for name in ("mine", "theirs"):
        table = pa.table({"image": [picture()], "caption": [name]})
        pq.write_table(table, folder / f"{name}.parquet")
    linked(folder / "mine.parquet")
    (folder / "again.parquet").symlink_to("theirs.parquet")
    report, documents = run(Table(folder), tmp_path)
    assert sorted(documents) == ["again.parquet:0", "theirs.parquet:0"]
    assert report.passed_over[LINK_OUT] == 1
    shutil.rmtree(tmp_path / "out")
    _, documents = run(Table(folder, links_into=tmp_path / "home"), tmp_path)
    assert "mine.parquet:0" in documents


def test_nothing_beside_a_tar_is_read_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for number in range(2):
        (folder / "0.png").write_bytes(picture())
        (folder / "0.txt").write_text("A text.")
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name in ("0.png", "0.txt"):
                tar.add(folder / name, name)
                (folder / name).unlink()
    pq.write_table(pa.table({"key": ["secret"], "status": ["failed"]}), folder / "0.parquet")
    linked(folder / "0.parquet")
    linked(folder / "1.tar")
    report, documents = run(Img2Dataset(folder), tmp_path)
    assert (list(documents), report.passed_over[LINK_OUT]) == (["0/0"], 2)
    assert dict(report.broken) == {"path climbs out of the folder": 1}
    assert not report.dropped
