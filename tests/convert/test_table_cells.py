"""What the cells of a table may hold: lists, paths, bytes."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcl_composer.convert.table import Table
from tests.convert.samples import run, shown
from tests.convert.test_table import BLUE, RED, images, write


def test_cells_that_list_captions_or_images_give_a_document_each(tmp_path):
    rows = [(RED, ["a red card", "card that is red"]), (BLUE, ["blue"]), (RED, [])]
    table = write(images(tmp_path) / "t.parquet", rows)
    report, documents = run(Table(table), tmp_path)
    assert [(name, *shown(d)) for name, d in documents.items()] == [
        ("t.parquet:0/0", RED, "a red card"),
        ("t.parquet:0/1", RED, "card that is red"),
        ("t.parquet:1", BLUE, "blue"),
    ]
    assert dict(report.dropped) == {"caption missing": 1}


@pytest.mark.parametrize(
    "cell",
    [
        '["A dog.", "It\'s red."]',
        """['A dog.', "It's red."]""",
        """['A dog.'\n "It's red."]""",
        '["A dog.", "It\\u0027s red."]',
    ],
)
def test_a_list_of_captions_may_be_written_out_in_csv(tmp_path, cell):
    write(images(tmp_path) / "t.csv", [("r.png", cell), ("r.png", "[sic] a [note]")])
    _, documents = run(Table(tmp_path / "set"), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["A dog.", "It's red.", "[sic] a [note]"]


def test_a_list_is_read_as_json_before_python(tmp_path):
    cells = [json.dumps(["a 😀", None]), r'["either\/or"]', "['a\\tb' 'c']", "[['a'], ['b']]", "[1, 2]", "[]"]
    write(images(tmp_path) / "t.csv", [("r.png", cell) for cell in cells])
    report, documents = run(Table(tmp_path / "set"), tmp_path)
    expected = ["a 😀", "either/or", "a b", "c", "[['a'], ['b']]", "[1, 2]"]
    assert [shown(d)[1] for d in documents.values()] == expected
    assert report.named == {"caption missing": ["t.csv:2/1", "t.csv:7"]}


def test_a_bad_item_of_a_list_costs_itself_alone(tmp_path):
    rows = [
        (RED, [None, "a red card", " ", "red"]),
        (["r.png", "gone.png", "d/b.jpg"], ["one", "two", "three"]),
    ]
    for row, name in zip(rows, "ab", strict=True):
        write(images(tmp_path) / f"{name}.parquet", [row])
    report, documents = run(Table(tmp_path / "set"), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["a red card", "red", "one", "three"]
    assert report.named == {
        "caption missing": ["a.parquet:0/0"],
        "caption empty": ["a.parquet:0/2"],
        "file missing": ["b.parquet:0/1"],
    }


def test_paths_start_where_their_table_lies(tmp_path):
    folder = images(tmp_path)
    for name, data in (("train", RED), ("test", BLUE)):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(data)
        write(
            folder / name / "metadata.csv",
            [("1.png", f"of {name}"), ("r.png", "of the root"), ("../r.png", "up")],
        )
    _, documents = run(Table(folder), tmp_path)
    root = [[RED, "of the root"], [RED, "up"]]
    seen = [shown(d) for d in documents.values()]
    assert seen == [[BLUE, "of test"], *root, [RED, "of train"], *root]


def test_texts_that_are_stored_as_bytes(tmp_path):
    captions = pa.array(["a café".encode(), "ein Stück Brot für zwei".encode("cp1252")], pa.binary())
    pq.write_table(pa.table({"image": [RED, BLUE], "caption": captions}), images(tmp_path) / "t.parquet")
    report, documents = run(Table(tmp_path / "set/t.parquet"), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["a café", "ein Stück Brot für zwei"]
    assert report.named == {"encoding guessed: windows-1252": ["t.parquet:1"]}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.tsv"])
def test_an_empty_file_is_counted_and_ends_nothing(tmp_path, name):
    write(images(tmp_path) / "b.csv", [("r.png", "a red card")])
    (tmp_path / "set" / name).touch()
    report, documents = run(Table(tmp_path / "set"), tmp_path)
    assert len(documents) == 1
    assert report.named == {"file empty": [name]}
