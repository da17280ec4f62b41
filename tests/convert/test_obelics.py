"""OBELICS and OmniCorpus -> Documents."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcl_composer.convert.obelics import Obelics, OmniCorpus
from lcl_composer.errors import DataError
from tests.convert.samples import FORMATS, needs_formats, picture, run, shown

RED, BLUE = picture(colour="red"), picture(colour="blue", kind="JPEG")
URL, OTHER = "http://a.b/red.png", "http://a.b/blue.jpg?x=1"


def write(tmp_path: Path, rows: list[dict], name: str = "train-0.parquet", **more) -> Path:
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [row["texts"] for row in rows]
    columns = {
        "images": [row["images"] for row in rows],
        "texts": texts,
        "metadata": ["[]"] * len(rows),
        **more,
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)
    downloads = tmp_path / "downloads"
    downloads.mkdir(exist_ok=True)
    for url, data in ((URL, RED), (OTHER, BLUE)):
        (downloads / sha256(url.encode()).hexdigest()).write_bytes(data)
    return path.parent


def row(*parts: str | bytes) -> dict:
    """URLs and bytes are images, the rest texts."""
    images = [p if isinstance(p, bytes) or "://" in p else None for p in parts]
    return {"images": images, "texts": [p if i is None else None for p, i in zip(parts, images, strict=True)]}


def test_images_and_texts_in_their_places_from_the_download_folder(tmp_path):
    folder = write(tmp_path, [row(URL, "One.\n\nTwo.", OTHER), row("A.", URL), row(OTHER, "B.")])
    _, documents = run(Obelics(folder, images=tmp_path / "downloads"), tmp_path)
    assert [shown(document) for document in documents.values()] == [
        [RED, "One.\n\nTwo.", BLUE],
        ["A.", RED],
        [BLUE, "B."],
    ]
    assert list(documents) == [f"train-0.parquet:{i}" for i in range(3)]
    assert not any(image.floats for document in documents.values() for image in document.images)


def test_texts_around_a_lost_image_and_between_articles_are_joined(tmp_path):
    text = "One. END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED\nTwo."
    folder = write(
        tmp_path, [row(URL, text, "http://gone/x", "Three.", "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED")]
    )
    report, documents = run(Obelics(folder, images=tmp_path / "downloads"), tmp_path)
    assert shown(documents["train-0.parquet:0"]) == [RED, "One.\n\nTwo.\n\nThree."]
    assert report.named["file missing"] == ["train-0.parquet:0: http://gone/x"]


def test_embedded_bytes_in_the_list_in_structs_or_in_a_column_of_their_own(tmp_path):
    write(tmp_path, [row(RED, "One.")], "a.parquet")
    structs = [{"images": [{"bytes": BLUE, "path": None}, None], "texts": [None, "Two."]}]
    write(tmp_path, structs, "dump-2/b.parquet")
    _, documents = run(OmniCorpus(tmp_path / "set"), tmp_path)
    assert [shown(d) for d in documents.values()] == [[RED, "One."], [BLUE, "Two."]]
    column = tmp_path / "column"
    write(column, [row(URL, "One."), row(OTHER, "Two.")], blobs=[[RED, None], [BLUE]])
    report, documents = run(Obelics(column / "set", bytes_column="blobs"), column)
    assert [shown(d) for d in documents.values()] == [[RED, "One."]]
    assert dict(report.dropped) == {"lists of unequal length": 1}


BAD = {
    "lists of unequal length": {"images": [URL], "texts": [None, "A."]},
    "images or texts missing": {"images": None, "texts": ["A."]},
    "no image": row("Only text."),
    "under 1 words": row(URL),
}


@pytest.mark.parametrize(("reason", "bad"), BAD.items())
def test_a_bad_row_is_counted_and_named(tmp_path, reason, bad):
    folder = write(tmp_path, [row(URL, "A."), bad, row("B.", URL)])
    report, documents = run(Obelics(folder, images=tmp_path / "downloads"), tmp_path)
    assert list(documents) == ["train-0.parquet:0", "train-0.parquet:2"]
    assert report.named[reason] == ["train-0.parquet:1"]


NEITHER, BOTH = "neither image nor text at a place", "image and text at a place"


@pytest.mark.parametrize(
    ("images", "texts", "counted"),
    [
        ([None, URL, None, None], ["A.", None, None, "B."], {NEITHER: 1}),
        (["", URL, "", ""], ["A.", "", "", "B."], {NEITHER: 1}),
        ([None, URL, OTHER, None], ["A.", None, "Caption.", "B."], {BOTH: 1}),
        ([None, URL, None], ["A.", " ", "B."], {}),
    ],
)
def test_a_failed_download_costs_its_place_alone(tmp_path, images, texts, counted):
    folder = write(tmp_path, [{"images": images, "texts": texts}])
    report, documents = run(Obelics(folder, images=tmp_path / "downloads"), tmp_path)
    assert shown(documents["train-0.parquet:0"]) == ["A.", RED, "B."]
    assert dict(report.dropped_images) == counted
    if counted:
        assert report.named[next(iter(counted))] == ["train-0.parquet:0: place 2"]


def test_images_that_are_structs_of_nothing_are_failed_downloads(tmp_path):
    nothing = {"bytes": None, "path": ""}
    folder = write(
        tmp_path, [{"images": [{"bytes": RED, "path": None}, nothing, nothing], "texts": [None, "A.", None]}]
    )
    report, documents = run(Obelics(folder), tmp_path)
    assert shown(documents["train-0.parquet:0"]) == [RED, "A."]
    assert dict(report.dropped_images) == {NEITHER: 1}


def test_a_text_that_is_no_utf8_costs_no_document(tmp_path):
    texts = pa.ListArray.from_arrays(
        [0, 2, 4], pa.array([None, b"fine", None, b"caf\xe9 cr\xe8me"], pa.binary()).view(pa.string())
    )
    (tmp_path / "set").mkdir()
    pq.write_table(
        pa.table({"images": [[RED, None], [BLUE, None]], "texts": texts}), tmp_path / "set/t.parquet"
    )
    report, documents = run(Obelics(tmp_path / "set"), tmp_path)
    assert [shown(d) for d in documents.values()] == [[RED, "fine"], [BLUE, "café crème"]]
    assert report.named == {"encoding guessed: windows-1252": ["t.parquet:1"]}


def test_arrow_files_as_datasets_leaves_them(tmp_path):
    table = pa.table({"images": [[RED, None]] * 3, "texts": [[None, f"Text {i}."] for i in range(3)]})
    (tmp_path / "set").mkdir()
    path = str(tmp_path / "set/data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    _, documents = run(Obelics(tmp_path / "set"), tmp_path)
    assert [shown(d) for d in documents.values()] == [[RED, f"Text {i}."] for i in range(3)]


def test_at_most_so_many_images(tmp_path):
    folder = write(tmp_path, [row(URL, "A.", OTHER, "B.", URL)])
    report, documents = run(Obelics(folder, images=tmp_path / "downloads", max_images=2), tmp_path)
    assert shown(documents["train-0.parquet:0"]) == [RED, "A.", BLUE, "B."]
    assert dict(report.dropped_images) == {"over 2 images": 1}


def test_truncated_files_are_counted_and_missing_columns_refused(tmp_path):
    folder = write(tmp_path, [row(URL, "A.")] * 9, "a.parquet")
    write(tmp_path, [row(URL, "A.")], "b.parquet")
    (folder / "a.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-30])
    report, documents = run(Obelics(folder, images=tmp_path / "downloads"), tmp_path)
    assert list(documents) == ["b.parquet:0"]
    assert report.named["unreadable or cut off (ArrowInvalid)"] == ["a.parquet"]
    pq.write_table(pa.table({"images": [[URL]]}), folder / "c.parquet")
    with pytest.raises(DataError, match=r"c.parquet: no column 'texts'; it has images"):
        run(Obelics(folder), tmp_path / "again")


def test_urls_without_a_folder_say_so(tmp_path):
    with pytest.raises(DataError, match="no image"):
        run(Obelics(write(tmp_path, [row(URL, "A.")])), tmp_path)


@needs_formats
@pytest.mark.parametrize(("kind", "name"), [(Obelics, "obelics"), (OmniCorpus, "omnicorpus")])
def test_the_published_layout(tmp_path, kind, name):
    report, documents = run(kind(FORMATS / name, images=FORMATS / "url_images"), tmp_path)
    assert (report.documents, report.images.total) == (3, 5)
    texts = [[s for s in shown(d) if isinstance(s, str)] for d in documents.values()]
    assert texts[1] == ["Paragraph 0 of page 1.\n\nSecond paragraph."]


def test_texts_that_are_stored_as_bytes(tmp_path):
    texts = pa.array([[None, "Zwei Größen.".encode()]], pa.list_(pa.binary()))
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"images": [[RED, None]], "texts": texts}), folder / "t.parquet")
    _, documents = run(Obelics(folder), tmp_path)
    assert shown(documents["t.parquet:0"]) == [RED, "Zwei Größen."]
