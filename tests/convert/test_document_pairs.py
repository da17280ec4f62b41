"""Converted documents -> the pairs of the same documents."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from lcl_composer.convert.document_pairs import DocumentPairs
from lcl_composer.convert.engine import convert
from lcl_composer.convert.html import HTML
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import ConfigError, DataError
from tests.convert.samples import content, picture, read_all, run, shown

RED, GREEN, BLUE = (Image(picture(colour=colour)) for colour in ("red", "green", "blue"))
SMALL = Image(picture(20))


@pytest.fixture
def shards(tmp_path):
    """Writes documents, given as segments by name, as a data set and returns the folder."""

    def write(documents: dict[str, list], split: str = "", **options) -> Path:
        with DocumentWriter(tmp_path / "documents" / split, **options) as writer:
            for name, segments in documents.items():
                made = (Text(s) if isinstance(s, str) else s for s in segments)
                writer.write(Document(name, f"page of {name}", tuple(made)))
        return tmp_path / "documents"

    return write


@pytest.mark.parametrize(
    ("segments", "texts"),
    [
        ([RED, "Below."], {"a#0": "Below."}),
        (["Above.", RED], {"a#0": "Above."}),
        (["Far.\n\nFigure 1", RED, "It is\n red.\n\nFar."], {"a#0": "Figure 1 It is red."}),
        (["One", RED, "Two", BLUE, "Three"], {"a#0": "One Two", "a#1": "Two Three"}),
        (["One", RED, BLUE, "Two"], {"a#0": "One Two", "a#1": "One Two"}),
        (["One\n\n", RED, "\n \n\nTwo"], {"a#0": "One Two"}),
        ([RED, " ", BLUE, "Two"], {"a#1": "Two"}),
        (["Never", Image(RED.data, floats=True), "Its own.\n\nAll of it."], {"a#0": "Its own. All of it."}),
        (["Never", Image(RED.data, floats=True), Image(BLUE.data, floats=True), "Both"],
         {"a#0": "Both", "a#1": "Both"}),
    ],
)  # fmt: skip
def test_the_text_of_an_image(shards, tmp_path, segments, texts):
    _, pairs = run(DocumentPairs(shards({"a": segments})), tmp_path)
    assert {name: pair.segments[1].text for name, pair in pairs.items()} == texts  # type: ignore[union-attr]
    images = [s for s in segments if isinstance(s, Image)]
    for name, pair in pairs.items():
        assert pair.segments[0] == Image(images[int(name[2:])].data, floats=True)
        assert (pair.source, len(pair.segments)) == ("page of a", 2)


def test_every_image_is_in_a_pair_or_counted(shards, tmp_path):
    source = shards({
        "words": ["Text alone."],
        "mute": [RED, BLUE],
        "late": ["Never", Image(RED.data, floats=True)],
        "marks": [RED, "* * *"],
        "good": ["One", RED, "Two", SMALL],
    })  # fmt: skip
    report, pairs = run(DocumentPairs(source, min_side=32), tmp_path)
    assert list(pairs) == ["good#0"]
    assert dict(report.dropped_images) == {"no text": 3, "a side under 32 px": 1}
    assert dict(report.dropped) == {"no image": 1, "under 1 words": 1}
    assert report.named["no text"] == ["mute#0", "mute#1", "late#0"]
    failures = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert {"sample": "good#1", "reason": "a side under 32 px"} in map(json.loads, failures)


def test_splits_are_kept(shards, tmp_path):
    for split, colour in (("train", RED), ("held_out", BLUE)):
        source = shards({f"{split}-1": ["One", colour], f"{split}-2": [colour, "Two", colour]}, split)
    report, _ = run(DocumentPairs(source), tmp_path)
    assert dict(report.kept) == {"train": 3, "held_out": 3}
    assert {d.images[0].data for d in read_all(tmp_path / "out/held_out").values()} == {BLUE.data}
    with pytest.raises(ConfigError, match="splits of their own"):
        convert(DocumentPairs(source), str(tmp_path / "other"), held_out=0.5, progress=False)


def test_the_pairs_of_converted_pages(tree, tmp_path):
    page = "<h1>Birds</h1><p>A wren.</p><img src=wren.png><p>It sings.</p><img src=robin.png><p>A robin.</p>"
    source = tree({"birds.html": page, "wren.png": RED.data, "robin.png": BLUE.data})
    convert(HTML(source, min_words=1), str(tmp_path / "pages"), progress=False)
    _, pairs = run(DocumentPairs(tmp_path / "pages"), tmp_path)
    found = [shown(pair) for pair in pairs.values()]
    assert found == [[RED.data, "A wren. It sings."], [BLUE.data, "It sings. A robin."]]


def many(shards) -> Path:
    documents = {f"d{i}": [f"One {i}", RED, "Two", BLUE] for i in range(40)}
    source = shards(documents, "train", size_limit=2000)
    assert len(list((source / "train").glob("*.zstd"))) > 8
    return shards({"h": [GREEN, "Held out"]}, "held_out")


def test_workers_have_no_say(shards, tmp_path):
    source = many(shards)
    for workers in (1, 2):
        convert(DocumentPairs(source), str(tmp_path / f"{workers}"), workers=workers, progress=False)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert len(read_all(tmp_path / "1/train")) == 80


def _die_at_shard(source: Path, out: str, calls: int) -> None:
    import os

    from lcl_composer.convert import document_pairs

    left = [calls]

    def read(*arguments):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return original(*arguments)

    original, document_pairs.read_shard = document_pairs.read_shard, read
    convert(DocumentPairs(source), out, workers=1, progress=False)


def test_cut_off_and_started_again(shards, tmp_path):
    source = many(shards)
    convert(DocumentPairs(source), str(tmp_path / "whole"), workers=1, progress=False)
    process = multiprocessing.get_context("forkserver").Process(
        target=_die_at_shard, args=(source, str(tmp_path / "cut"), 5)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list((tmp_path / "cut.partial/.convert/parts").glob("?????.json"))) == 5
    convert(DocumentPairs(source), str(tmp_path / "cut"), workers=1, progress=False)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_what_is_no_data_set_is_refused(shards, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data set"):
        run(DocumentPairs(tmp_path / "empty"), tmp_path)


def test_shards_that_are_elsewhere_are_refused(shards, tmp_path):
    source = many(shards)
    max((source / "train").glob("*.zstd")).unlink()
    with pytest.raises(DataError, match=r"train: 1 shards of its index are not here"):
        run(DocumentPairs(source), tmp_path)


def test_a_damaged_shard_stops_it(shards, tmp_path):
    source = many(shards)
    first = min((source / "train").glob("*.zstd"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{first.name}: its xxh64"):
        run(DocumentPairs(source), tmp_path)
