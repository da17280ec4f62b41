"""Tables of images and captions -> Documents."""

from __future__ import annotations

import csv
import gzip
import json
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Rejected
from lcl_composer.convert.table import Table
from lcl_composer.convert.tables import split_lines, table_parts
from lcl_composer.data.document import Image, Text
from lcl_composer.errors import DataError
from tests.convert.samples import picture, run, shown

RED, BLUE = picture(colour="red"), picture(colour="blue", kind="JPEG")
ROWS = [("r.png", 'A "red"\none, see'), ("d/b.jpg", "A blue one.")]


def images(tmp_path: Path) -> Path:
    (tmp_path / "set/d").mkdir(parents=True, exist_ok=True)
    (tmp_path / "set/r.png").write_bytes(RED)
    (tmp_path / "set/d/b.jpg").write_bytes(BLUE)
    return tmp_path / "set"


def write(path: Path, rows: list[tuple]) -> Path:
    names = ["image", "caption", "similarity", "language"][: len(rows[0])]
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([names, *rows])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]), path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rows_are_pairs(tmp_path, suffix):
    table = write(images(tmp_path) / f"t.{suffix}", ROWS)
    _, documents = run(Table(table), tmp_path)
    first, second = documents.values()
    assert first.segments == (Image(RED, floats=True), Text('A "red" one, see'))
    assert shown(second) == [BLUE, "A blue one."]
    assert first.id.startswith(f"t.{suffix}:")


def test_a_folder_of_tables_with_images_elsewhere_by_path_bytes_or_url(tmp_path):
    url = "https://a.b/c.png"
    (tmp_path / "tables").mkdir()
    images(tmp_path).joinpath(sha256(url.encode()).hexdigest()).write_bytes(RED)
    write(tmp_path / "tables/1.csv", [("d/b.jpg", "Path.")])
    write(tmp_path / "tables/2.parquet", [(BLUE, "Bytes.")])
    write(tmp_path / "tables/3.jsonl", [(url, "Url.")])
    _, documents = run(Table(tmp_path / "tables", images=tmp_path / "set"), tmp_path)
    assert [shown(d) for d in documents.values()] == [[BLUE, "Path."], [BLUE, "Bytes."], [RED, "Url."]]


BAD = {
    "image missing": (None, "A."),
    "caption missing": ("r.png", None),
    "caption empty": ("r.png", " "),
    "path climbs out of the folder": ("../secret.png", "A."),
    "file missing": ("gone.png", "A."),
    "similarity under 0.3, or none": ("r.png", "A.", 0.2),
    "another language": ("r.png", "A.", 0.5, "de"),
}


@pytest.mark.parametrize(("reason", "bad"), BAD.items())
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_bad_row_is_counted_and_named(tmp_path, suffix, reason, bad):
    (tmp_path / "secret.png").write_bytes(RED)
    good = ("r.png", "Good.", 0.4, "en")
    bad = (*bad, *good[len(bad) :])
    table = write(images(tmp_path) / f"t.{suffix}", [good, bad, good])
    report, documents = run(Table(table, min_similarity=0.3, language=["en"]), tmp_path)
    assert len(documents) == 2
    assert dict(report.dropped) == {reason: 1}
    assert report.named[reason][0] not in documents


def test_bad_lines_of_csv_and_jsonl(tmp_path):
    folder = images(tmp_path)
    (folder / "a.csv").write_text(
        'image,caption\nr.png,One\nr.png\n"r.png"x,Two\nr.png,Three\nr.png,"cut off'
    )
    (folder / "b.jsonl").write_text('{"image": "r.png", "caption": "Four"}\n{"image": "r.p')
    report, documents = run(Table(folder), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["One", "Three", "Four"]
    assert report.named == {
        "another number of fields than the header": ["a.csv:3"],
        "not CSV, or cut off": ["a.csv:4", "a.csv:6"],
        "not JSON, or cut off": ["b.jsonl:2"],
    }


def csv_captions(tmp_path: Path, data: bytes, name: str = "t.csv") -> tuple[list[str], dict, dict]:
    """Write a table; return the captions read, what is named and what is mended."""
    (images(tmp_path) / name).write_bytes(data)
    source, report = Table(tmp_path / "set"), ConversionReport("table", "here", {})
    captions = []
    for part in source.parts():
        for where, row in source.records(part, report):
            if isinstance(row, Rejected):
                report.drop(str(row), where)
            else:
                captions += [shown(sample.document)[1] for sample in source.samples(where, row, report)]
    return captions, dict(report.named), dict(report.mended)


def test_a_stray_quote_costs_its_line_alone(tmp_path):
    data = b'image,caption\nr.png,one\nr.png,"never closed\nr.png,three\nr.png,"four, quoted"\nr.png,five\n'
    captions, named, _ = csv_captions(tmp_path, data)
    assert captions == ["one", "three", "four, quoted", "five"]
    assert named == {"not CSV, or cut off": ["t.csv:3"]}


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_quotes_inside_a_field_are_characters(tmp_path, size, monkeypatch):
    monkeypatch.setattr("lcl_composer.convert.table.table_parts", lambda r, n: table_parts(r, n, size))
    data = "image,caption\n" + "".join(
        f'r.png,a {i}" nail\nr.png,"said ""{i}"",\nand left"\n' for i in range(9)
    )
    captions, named, _ = csv_captions(tmp_path, data.encode())
    assert captions == [text for i in range(9) for text in (f'a {i}" nail', f'said "{i}", and left')]
    assert not named


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "T.CSV.GZ", "t.jsonl.gz", "zipped.csv"])
def test_zipped_tables_are_read_to_where_they_break(tmp_path, name):
    tab = "\t" if "tsv" in name else ","
    rows = [f"r.png{tab}row {i} {sha256(bytes([i])).hexdigest()}" for i in range(90)]
    text = "\n".join([f"image{tab}caption", *rows]) + "\n"
    if "jsonl" in name:
        cells = [row.split(tab) for row in rows]
        text = "".join(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in cells)
    whole = gzip.compress(text.encode())
    captions, named, _ = csv_captions(tmp_path, whole, name)
    assert captions == [row.split(tab)[1] for row in rows]
    assert not named
    captions, _, _ = csv_captions(tmp_path, whole[: len(whole) // 2], name)
    assert 10 < len(captions) < 90


def test_a_zipped_table_that_breaks_off_is_counted(tmp_path):
    data = gzip.compress(b"image,caption\n" + b"r.png,one\n" * 2000)
    (images(tmp_path) / "t.csv.gz").write_bytes(data[:-9])
    report, documents = run(Table(tmp_path / "set"), tmp_path)
    assert dict(report.broken) == {"unreadable or cut off (EOFError)": 1}
    assert len(documents) > 1900


def test_an_inch_mark_does_not_make_a_file_one_part(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('image,caption\nr.png,6" nail\n' + "r.png,plain\n" * 1000)
    assert len(list(split_lines(path, True, 1000))) > 10
    path.write_text('image,caption\nr.png,"never closed\n' + "r.png,plain\n" * 1000)
    assert len(list(split_lines(path, True, 1000))) > 10


def test_a_quote_over_the_end_of_a_part_costs_its_line_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("lcl_composer.convert.table.table_parts", lambda r, n: table_parts(r, n, 30))
    data = "image,caption\n" + "r.png,x\n" * 5 + 'r.png,"open\n' + "r.png,y\n" * 20
    captions, named, _ = csv_captions(tmp_path, data.encode())
    assert captions == ["x"] * 5 + ["y"] * 20
    assert named == {"not CSV, or cut off": ["t.csv:7"]}


CARTE = "café crème à la “carte”"


@pytest.mark.parametrize("end", [".csv", ".jsonl"])
def test_lines_of_utf8_among_others_are_read_as_such(tmp_path, end):
    captions = ["Der Fluß fließt", "Übergrößenträger", "façade, naïve", "Größe"]
    table = write(images(tmp_path) / f"t{end}", [("r.png", caption) for caption in captions])
    lines = [b'{"image": "r.png", "caption": "%s"}' if end == ".jsonl" else b'r.png,"%s"'] * 4
    codecs = ["cp1252", "utf-8", "cp1252", "cp1252"]
    rows = [line % c.encode(codec) for line, c, codec in zip(lines, captions, codecs, strict=True)]
    table.write_bytes(b"\n".join(([] if end == ".jsonl" else [b"image,caption"]) + rows))
    report, documents = run(Table(table), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == captions
    assert dict(report.mended) == {
        "encoding guessed: windows-1252": 1,
        "UTF-8 among lines in another encoding": 1,
    }


@pytest.mark.parametrize("codec", ["cp1252", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "between"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t")])
def test_csv_of_any_encoding_line_end_and_delimiter(tmp_path, codec, end, name, between):
    rows = [["image", "caption"], ["r.png", CARTE], ["r.png", '"naïve, or\nnot"'], ["r.png", "plain"]]
    data = end.join(between.join(row) for row in rows).encode(codec)
    captions, named, mended = csv_captions(tmp_path, data, name)
    assert captions == [CARTE, "naïve, or not", "plain"]
    assert mended == ({"encoding guessed: windows-1252": 1} if codec == "cp1252" else {})
    assert set(named) == set(mended)


def test_one_policy_on_bad_bytes_in_all_kinds_of_tables(tmp_path):
    folder = images(tmp_path)
    good, bad = "Der Fluß fließt".encode(), "über die Br\xfccke".encode() + b" \xff"
    (folder / "a.csv").write_bytes(b"image,caption\nr.png," + good + b"\nr.png," + bad)
    line = b'{"image": "r.png", "caption": "%s"}\n'
    (folder / "b.jsonl").write_bytes(line % good + line % bad)
    strings = pa.array([good, bad], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": ["r.png"] * 2, "caption": strings}), folder / "c.parquet")
    report, documents = run(Table(folder), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["Der Fluß fließt", "über die Brücke \ufffd"] * 3
    assert report.named == {"bytes that are no text became U+FFFD": ["a.csv:3", "b.jsonl:2", "c.parquet:1"]}


def test_utf16_jsonl(tmp_path):
    path = images(tmp_path) / "t.jsonl"
    path.write_bytes(f'{{"image": "r.png", "caption": "{CARTE}"}}\r\n\r\n'.encode("utf-16"))
    _, documents = run(Table(path), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == [CARTE]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_parquet_string_that_is_no_utf8_costs_no_other_row(tmp_path, kind):
    captions = pa.array([b"a red card", b"R\xc9UNION island card", b"a blue card"], pa.binary())
    table = pa.table({"image": [RED, BLUE, RED], "caption": captions.view(pa.string()).cast(kind)})
    pq.write_table(table, images(tmp_path) / "t.parquet")
    report, documents = run(Table(tmp_path / "set/t.parquet"), tmp_path)
    assert [shown(d) for d in documents.values()] == [
        [RED, "a red card"],
        [BLUE, "RÉUNION island card"],
        [RED, "a blue card"],
    ]
    assert report.named == {"encoding guessed: windows-1252": ["t.parquet:1"]}


def test_a_cell_that_cannot_be_read_costs_its_row(tmp_path):
    times = pa.array([0, 1 << 60, 0], pa.int64()).cast(pa.timestamp("us"))  # the year 38,503
    table = pa.table({"image": [RED] * 3, "caption": ["one", "two", "three"], "similarity": times})
    pq.write_table(table, images(tmp_path) / "t.parquet")
    report, documents = run(Table(tmp_path / "set/t.parquet"), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["one", "three"]
    assert list(report.named.values()) == [["t.parquet:1"]]


@pytest.mark.parametrize("writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_of_datasets(tmp_path, writer):
    batches = pa.table({"image": [RED] * 40, "caption": [f"row {i}" for i in range(40)]}).to_batches(7)
    path = images(tmp_path) / "data.arrow"
    with pa.OSFile(str(path), "wb") as file, writer(file, batches[0].schema) as out:
        for batch in batches:
            out.write_batch(batch)
    _, documents = run(Table(path), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == [f"row {i}" for i in range(40)]


def test_a_cut_off_arrow_file_gives_the_rows_before_the_break(tmp_path):
    batches = pa.table({"image": [RED] * 40, "caption": [f"row {i}" for i in range(40)]}).to_batches(7)
    path = images(tmp_path) / "data.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batches[0].schema) as out:
        for batch in batches:
            out.write_batch(batch)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report, documents = run(Table(path), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == [f"row {i}" for i in range(14)]
    assert report.broken.total() == 1
    assert "data.arrow:14" in [name for names in report.named.values() for name in names]


def test_an_absolute_path_and_a_link_out_of_the_folder_climb_out(tmp_path):
    (tmp_path / "secret.png").write_bytes(RED)
    folder = images(tmp_path)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [(str(tmp_path / "secret.png"), "A."), ("link.png", "B."), (str(folder / "r.png"), "Inside.")]
    rows += [("/d/b.jpg", "From the root.")]
    report, documents = run(Table(write(folder / "t.jsonl", rows)), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["Inside.", "From the root."]
    assert dict(report.dropped) == {"path climbs out of the folder": 2}


def test_wrong_tables_are_refused(tmp_path):
    table = write(images(tmp_path) / "t.csv", ROWS)
    with pytest.raises(DataError, match="no column 'text'; it has image, caption; name the columns with"):
        run(Table(table, caption_column="text"), tmp_path)
    with pytest.raises(DataError, match="no table"):
        run(Table(tmp_path / "set/r.png"), tmp_path)
    table.write_text("image,caption,caption\nr.png,A.,B.\n")
    with pytest.raises(DataError, match=r"t\.csv: several columns are called 'caption'; call the others"):
        run(Table(table), tmp_path)
    table.write_text("image,caption\n")
    with pytest.raises(DataError, match=r"t\.csv: holds no record; the first file that was read is t\.csv"):
        run(Table(table), tmp_path)
    table.write_text("")
    with pytest.raises(DataError, match=r"none of 0 documents kept: file empty \(1\)"):
        run(Table(table), tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        run(Table(tmp_path / "none"), tmp_path)


@pytest.mark.parametrize("size", [1, 7, 30, 64, 1000])
@pytest.mark.parametrize("end", ["\n", ""])
def test_parts_cover_a_file_once_and_cut_no_record(tmp_path, size, end):
    rows = [(f"{i}.png", f'say "{i}"\n\n,x' if i % 3 else f"plain {i}") for i in range(40)]
    path = write(tmp_path / "t.csv", rows)
    path.write_text(path.read_text().rstrip("\n") + end)
    parts = list(split_lines(path, True, size))
    data = path.read_bytes()
    assert b"".join(data[start:stop] for start, stop, _ in parts) == data
    for start, stop, line in parts:
        assert data[start:stop].count(b'"') % 2 == 0
        assert line == data[:start].count(b"\n") + 1


@pytest.mark.parametrize("size", [40, 10_000])
def test_rows_of_all_parts_are_those_of_the_table(tmp_path, size, monkeypatch):
    monkeypatch.setattr("lcl_composer.convert.table.table_parts", lambda r, n: table_parts(r, n, size))
    rows = [("r.png", f"row {i} of\nmany" if i % 2 else f"row {i}") for i in range(30)]
    _, documents = run(Table(write(images(tmp_path) / "t.csv", rows)), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == [
        f"row {i} of many" if i % 2 else f"row {i}" for i in range(30)
    ]


def test_spaces_behind_commas_are_no_part_of_a_field(tmp_path):
    data = b'image, "caption"\nr.png, "A dog, running"\nr.png, plain\nr.png,"near"\n'
    assert csv_captions(tmp_path, data)[0] == ["A dog, running", "plain", "near"]


def asked(tmp_path: Path, rows: list[dict], **options) -> tuple[ConversionReport, dict]:
    """Convert questions in JSONL."""
    path = images(tmp_path) / "vqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(Table(path, question_column="q", caption_column="answers", **options), tmp_path)


def test_a_question_and_all_answers_are_one_document(tmp_path):
    told = [{"answer": "a cat", "answer_id": 1}, {"answer": "cat"}, {"answer": None}]
    rows = [
        {"image": "r.png", "q": "What\nis it?", "answers": ["red", "red", " "]},
        {"image": "d/b.jpg", "q": "How many?", "answers": 2},
        {"image": "d/b.jpg", "q": "Who?", "answers": told},
    ]
    _, documents = asked(tmp_path, rows)
    assert [d.segments for d in documents.values()] == [
        (Image(RED), Text("What is it?"), Text("red"), Text("red")),
        (Image(BLUE), Text("How many?"), Text("2")),
        (Image(BLUE), Text("Who?"), Text("a cat"), Text("cat")),
    ]


def test_questions_about_one_image_are_held_out_together(tmp_path):
    rows = [{"image": name, "q": "Who?", "answers": ["x"]} for name in ("r.png", "d/b.jpg", "r.png")]
    source = Table(images(tmp_path) / "vqa.jsonl", question_column="q", caption_column="answers")
    source.source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = ConversionReport("table", "here", {})
    records = [record for part in source.parts() for record in source.records(part, report)]
    keys = [sample.key for name, row in records for sample in source.samples(name, row, report)]
    assert keys[0] == keys[2] != keys[1]


def test_questions_that_lack_something_are_counted(tmp_path):
    good = {"image": "r.png", "q": "Who?", "answers": ["x"]}
    report, documents = asked(
        tmp_path, [good, good | {"q": " "}, good | {"answers": [" "]}, good | {"image": "gone.png"}]
    )
    assert len(documents) == 1
    assert dict(report.dropped) == {"question missing": 1, "answer missing": 1, "file missing": 1}


def test_a_table_without_the_question_column_is_refused(tmp_path):
    (images(tmp_path) / "t.csv").write_text("image,caption\nr.png,x\n")
    with pytest.raises(DataError, match="no column 'q'"):
        list(Table(tmp_path / "set/t.csv", question_column="q").parts())
