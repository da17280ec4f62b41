"""The engine: what may be taken up again, where the output goes, who is at work."""

from __future__ import annotations

import fcntl
import json
import os

import pytest
from streaming.base.storage.upload import LocalUploader

from lcl_composer.convert.engine import convert
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.report import ConversionReport
from lcl_composer.data.shards import read_documents
from lcl_composer.data.sizes import read_sizes, size_of
from lcl_composer.errors import ConfigError, DataError
from tests.convert.samples import content, read_all, run
from tests.convert.tars import pair, write_folder, write_tar


@pytest.fixture
def source(tmp_path) -> Img2Dataset:
    return Img2Dataset(write_folder(tmp_path / "laion", 3, 4))


@pytest.fixture
def interrupted(source, tmp_path, monkeypatch) -> Img2Dataset:
    """A source of whose three tars one is converted."""
    from lcl_composer.convert import engine

    original, done = engine.convert_part, []

    def interrupt(*arguments) -> None:
        if done:
            raise KeyboardInterrupt
        original(*arguments)
        done.append(1)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "convert_part", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path)
    return source


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(source, tmp_path):
    for workers in (1, 3):
        convert(source, str(tmp_path / f"{workers}"), workers=workers, held_out=0.3, progress=False)
    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_what_is_finished_is_not_done_again(interrupted, tmp_path, monkeypatch):
    from lcl_composer.convert import engine

    seen = []
    original = engine.convert_part
    monkeypatch.setattr(engine, "convert_part", lambda *a: (seen.append(a[1]), original(*a)))
    report, documents = run(interrupted, tmp_path)
    assert seen == [1, 2]
    assert (report.documents, report.dropped["not a known image format"]) == (9, 3)
    assert len(documents) == 9


def test_other_options_are_refused_until_the_folder_is_gone(interrupted, tmp_path):
    changed = Img2Dataset(interrupted.source, min_side=9, verify=True)
    with pytest.raises(DataError, match=r"min_side 1 -> 9, verify False -> True.*delete the folder"):
        run(changed, tmp_path)
    with pytest.raises(DataError, match=r"held_out 0.0 -> 0.5"):
        run(interrupted, tmp_path, held_out=0.5)
    assert run(interrupted, tmp_path)[0].documents == 9


def test_other_versions_are_refused(interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr("lcl_composer.versions.version", lambda name: "0.0")
    with pytest.raises(DataError, match=r"pillow [\d.]+ -> 0.0"):
        run(interrupted, tmp_path)


@pytest.mark.parametrize("change", ["touched", "added", "removed", "first removed"])
def test_another_source_is_refused(interrupted, tmp_path, change):
    tar = interrupted.source / ("00000.tar" if change == "first removed" else "00002.tar")
    if change == "touched":
        os.utime(tar, ns=(1, 1))
    elif change == "added":
        write_tar(interrupted.source / "00003.tar", pair("x"))
    else:
        tar.unlink()
    with pytest.raises(DataError, match=r"has changed since .*out.partial was begun \(at '0000"):
        run(interrupted, tmp_path)


def test_two_at_once_are_refused(interrupted, tmp_path):
    with open(tmp_path / "out.partial/.convert/lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another conversion is at work"):
            run(interrupted, tmp_path)


def test_a_folder_of_something_else_is_left_alone(source, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files that no conversion wrote"):
        run(source, tmp_path)
    assert (tmp_path / "out.partial/thesis.txt").read_text() == "mine"


def test_a_refused_source_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found nothing to read"):
        run(Img2Dataset(tmp_path / "empty"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_remote_gets_the_same_files(source, tmp_path):
    convert(source, str(tmp_path / "local"), progress=False)
    convert(source, str(tmp_path / "remote"), work=tmp_path / "work", progress=False, workers=1)
    assert content(tmp_path / "remote") == content(tmp_path / "local")
    assert not (tmp_path / "work").exists()
    assert len(read_all(tmp_path / "remote")) == 9
    with pytest.raises(DataError, match="exists already"):
        convert(source, str(tmp_path / "remote"), work=tmp_path / "work", progress=False)


def test_a_failed_upload_can_be_taken_up_again(source, tmp_path, monkeypatch):
    out, work = str(tmp_path / "remote"), tmp_path / "work"

    def fail(uploader, name) -> None:
        if uploader.remote:  # the shard writer calls it for local files, too
            raise OSError("no way")

    with monkeypatch.context() as patch:
        patch.setattr(LocalUploader, "upload_file", fail)
        with pytest.raises(DataError, match=r"upload failed \(OSError: no way\); start again to continue"):
            convert(source, out, work=work, progress=False, workers=1)
    assert convert(source, out, work=work, progress=False, workers=1).documents == 9
    assert len(read_all(tmp_path / "remote")) == 9


@pytest.mark.parametrize(
    ("out", "reason"), [("ftp://a/b", "Streaming writes no such remote"), ("s3://a/b", "--work")]
)
def test_remotes_that_cannot_be_written(source, tmp_path, out, reason):
    work = None if "--work" in reason else tmp_path / "work"
    with pytest.raises(DataError, match=reason):
        convert(source, out, work=work, progress=False)
    assert not (tmp_path / "work").exists()


def test_the_work_folder_may_be_one_that_stays(source, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match="is a mount or a link"):
        convert(source, str(tmp_path / "link"), progress=False)
    (tmp_path / "elsewhere/.convert.done").mkdir()  # of a process killed at the very end
    work = tmp_path / "link"
    assert convert(source, str(tmp_path / "remote/"), work=work, progress=False, workers=1).documents == 9
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("options", [{"held_out": 1.0}, {"workers": 0}, {"shard_size": 1}])
def test_options_out_of_range(source, tmp_path, options):
    with pytest.raises(ConfigError):
        convert(source, str(tmp_path / "out"), progress=False, **options)


def test_the_report_names_source_options_versions_and_every_failure(source, tmp_path):
    report, _ = run(source, tmp_path)
    facts = json.loads((tmp_path / "out/conversion.json").read_text())
    assert facts["source"] == str(source.source)
    assert facts["options"] == {**source.options(), "held_out": 0.0, "shard_size": 1 << 26}
    assert {"python", "mosaicml-streaming", "pillow", "zstd"} <= set(facts["versions"])
    assert (facts["read"], facts["kept"], facts["tokens"]["median"]) == (12, {"all": 9}, 7)
    stored = sum(len(data) for name, data in content(tmp_path / "out").items() if name.endswith(".zstd"))
    assert facts["shard_bytes"] == stored
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [f["sample"] for f in failures] == ["00000/000003", "00001/001003", "00002/002003"]
    loaded = ConversionReport.load(tmp_path / "out/conversion.json")
    assert loaded.to_json() == report.to_json()


def test_shards_are_of_the_size_asked_for_with_hashes(source, tmp_path):
    run(source, tmp_path, shard_size=2048)
    shards = json.loads((tmp_path / "out/index.json").read_text())["shards"]
    assert len(shards) > 3
    assert all(shard["raw_data"]["bytes"] <= 2048 for shard in shards)
    assert all(set(shard["zip_data"]["hashes"]) == {"xxh64"} for shard in shards)
    assert {shard["compression"] for shard in shards} == {"zstd"}


def test_each_split_has_the_sizes_of_its_documents_in_the_index_order(source, tmp_path):
    run(source, tmp_path, held_out=0.5)
    for split in ("train", "held_out"):
        folder = tmp_path / "out" / split
        expected = [size_of(document) for document in read_documents(folder)]
        sizes = read_sizes(folder, len(expected))
        assert sizes is not None
        assert list(map(tuple, sizes.tolist())) == expected


def test_parts_of_an_earlier_version_have_no_sizes(interrupted, tmp_path):
    (made,) = (tmp_path / "out.partial/.convert/parts").glob("*.sizes.npy")
    made.unlink()
    run(interrupted, tmp_path)
    assert not list((tmp_path / "out").rglob("sizes.npy"))


def test_halves_of_characters_are_replaced(tmp_path):
    write_tar(
        tmp_path / "laion/0.tar", {"a.jpg": pair("a")["a.jpg"], "a.json": '{"caption": "odd \\ud83d text"}'}
    )
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    (document,) = documents.values()
    assert document.segments[1].text == "odd ? text"
    assert report.named == {"halves of characters became ?": ["0/a"]}


def test_what_no_one_thought_of_costs_its_record_or_the_rest_of_its_part(source, tmp_path, monkeypatch):
    original = Img2Dataset.samples

    def samples(self, name, record, report):
        if name == "00001/001001":
            raise ZeroDivisionError("by\nzero")
        yield from original(self, name, record, report)

    def records(self, part, report):
        for number, item in enumerate(original_records(self, part, report)):
            if part.name == "00000.tar" and number == 2:
                raise ZeroDivisionError
            yield item

    original_records = Img2Dataset.records
    monkeypatch.setattr(Img2Dataset, "samples", samples)
    monkeypatch.setattr(Img2Dataset, "records", records)
    report, documents = run(source, tmp_path)
    assert len(documents) == 7  # of 9: one record, and what follows the second of the first part
    assert report.named["cannot be converted (ZeroDivisionError: by zero)"] == ["00001/001001"]
    assert report.named["cannot be read on (ZeroDivisionError: )"] == ["00000/000001"]


def test_an_impossible_out_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"file.*Not a directory.*start again") as caught:
        run(source, tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_where_nothing_is_found_it_says_what_is_there(tmp_path):
    (tmp_path / "laion").mkdir()
    (tmp_path / "laion/0.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"found nothing to read; .*\.tar.*here are \.heic files \(1\)"):
        run(Img2Dataset(tmp_path / "laion"), tmp_path)


def test_where_nothing_is_kept_the_failures_are(tmp_path):
    write_tar(tmp_path / "laion/0.tar", pair("a", b"<html>"))
    with pytest.raises(DataError, match=r"image format \(1\); the first: 0/a \(not a known"):
        run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert json.loads((tmp_path / "out.failures.jsonl").read_text())["sample"] == "0/a"
