"""A data set from a stranger: no column runs code, no name leads out of its folder, no bomb goes off."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import zstd
from PIL import EpsImagePlugin
from streaming import MDSWriter

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.image import decode_image, decode_train_crop
from lcl_composer.data.labelled import count_classes
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.data.packed import unpack
from lcl_composer.data.shard_index import read_index
from lcl_composer.data.shards import open_shards, sample
from lcl_composer.data.sources import trained_on
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset
from tests.data.loaders import loader_of
from tests.security.harm import harmful

_made: list[DocumentLoader] = []
Index = dict[str, Any]


@pytest.fixture(autouse=True)
def _close_loaders() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


def loader(local: Path, remote: Path | None = None, **changes: Any) -> DocumentLoader:
    options = {
        "local": str(local),
        "remote": remote and str(remote),
        "batch_size": 4,
        "max_bad_fraction": 1.0,
    }
    _made.append(cast(DocumentLoader, loader_of(**{**options, **changes}).dataloader))
    return _made[-1]


def bad_samples(folder: Path) -> int:
    """How many samples training passes over."""
    made = loader(folder)
    assert len(list(made)) == 2
    return made.bad_samples


def edit(folder: Path, change: Any) -> Path:
    """Rewrite the index of a data set."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index["shards"])
    path.write_text(json.dumps(index))
    return path


def refused(folder: Path, message: str) -> None:
    """By training, and by what only looks."""
    for read in (lambda: trained_on(folder / "index.json"), lambda: open_shards(folder)):
        with pytest.raises(DataError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)


def shards_with(folder: Path, columns: dict[str, str], record: dict[str, Any]) -> Path:
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for number in range(8):
            writer.write({**record, "id": f"d{number}"})
    return folder


COLUMNS = {"id": "str", "source": "str", "segments": "json", "images": "bytes"}
RECORD = {"source": "s", "segments": [{"text": "1 2"}], "images": b""}


@pytest.mark.parametrize("name", ["more", "id"])
def test_a_pickled_column_is_refused(tmp_path: Path, name: str) -> None:
    """Beside those of a Document; and under the name of one of them, which comes twice."""
    folder = shards_with(
        tmp_path / "set", {**COLUMNS, "more": "bytes"}, {**RECORD, "more": harmful(tmp_path / "ran")}
    )

    def pickled(shards: list[Index]) -> None:
        at = shards[0]["column_names"].index("more")
        shards[0]["column_names"][at], shards[0]["column_encodings"][at] = name, "pkl"
        order = sorted(range(5), key=lambda i: i != at)  # the pickle first: of two of a name the last counts
        if name == "id":
            for key in ("column_names", "column_encodings", "column_sizes"):
                shards[0][key] = [shards[0][key][i] for i in order]

    edit(folder, pickled)
    refused(folder, "is a pickle, which runs code when read")
    with pytest.raises(DataError, match="is a pickle"):
        count_classes(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "encoding", ["pil", "jpeg", "png", "list[pil]", "jpeg_array", "ndarray", "pkl2", "[]"]
)
def test_columns_that_other_decoders_read_are_refused(make_dataset: MakeDataset, encoding: str) -> None:
    folder = make_dataset(4)

    def more(shards: list[Index]) -> None:
        for shard in shards:
            for key, value in (("column_names", "x"), ("column_encodings", encoding), ("column_sizes", None)):
                shard[key].append(value)

    edit(folder, more)
    refused(folder, "column 'x' comes twice or is no plain value")


OUTSIDE = [
    "../secret",
    "/etc/passwd",
    "a/../../secret",
    "..",
    "",
    "a//b",
    "./a",
    "a\0b",
    "..\\secret",
    5,
    None,
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("key", ["raw_data", "zip_data"])
def test_names_that_lead_out_are_refused(make_dataset: MakeDataset, name: Any, key: str) -> None:
    folder = make_dataset(4)
    edit(folder, lambda shards: shards[0][key].update(basename=name))
    refused(folder, "which does not lie in the folder of the index")


def test_nothing_outside_is_deleted_or_written(tmp_path: Path, make_dataset: MakeDataset) -> None:
    """A remote's index names a file of the user's: Streaming would fetch over it, or drop it as truncated."""
    remote, kept = make_dataset(20, name="remote"), tmp_path / "kept"
    kept.write_text("mine")
    edit(remote, lambda shards: shards[0]["raw_data"].update(basename="../kept"))
    shutil.copy(next(remote.glob("*.zstd")), tmp_path / "kept.zstd")
    with pytest.raises(DataError, match="does not lie in the folder"):
        list(loader(tmp_path / "cache", remote))
    assert kept.read_text() == "mine"


def test_no_shard_is_written_through_a_link(tmp_path: Path, make_dataset: MakeDataset) -> None:
    """Where the half-written shard goes, a folder from a stranger has a link to a file of the user's."""
    folder, mine = make_dataset(20), tmp_path / "mine"
    mine.write_text("mine")
    for packed in folder.glob("*.zstd"):
        (folder / f"{packed.stem}.tmp").symlink_to(mine)
    with pytest.raises(DataError, match=r"\.tmp: is a link, and would be written through"):
        list(loader(folder))
    assert mine.read_text() == "mine"
    cache = tmp_path / "cache"
    cache.mkdir()
    for packed in folder.glob("*.zstd"):
        (cache / f"{packed.name}.tmp").symlink_to(mine)
    with pytest.raises(DataError, match="would be written through"):
        list(loader(cache, folder))
    assert mine.read_text() == "mine"


def test_a_folder_of_shards_that_is_a_link_is_refused(tmp_path: Path, make_dataset: MakeDataset) -> None:
    folder = make_dataset(4)
    (tmp_path / "home").mkdir()
    (folder / "part").symlink_to(tmp_path / "home")
    edit(folder, lambda shards: shards[0]["raw_data"].update(basename="part/x.mds"))
    refused(folder, "lie in 'part', a link that leads out of")
    (folder / "part").unlink()
    (folder / "part").mkdir()
    assert read_index(folder / "index.json")


ODD = [
    ("samples", 10**12, "samples in"),
    ("samples", -1, "samples in"),
    ("samples", 3.0, "samples in"),
    ("samples", True, "samples in"),
    ("samples", float("inf"), "samples in"),
    ("raw_data", {"basename": "x", "bytes": 1 << 40, "hashes": {}}, "bytes"),
    ("raw_data", {"basename": "x", "bytes": "9", "hashes": {}}, "bytes"),
    ("raw_data", {"basename": "x", "bytes": 99, "hashes": 3}, "no hashes by name"),
    ("raw_data", {"basename": "x", "bytes": 99, "__class__": 1}, "not a file with"),
    ("raw_data", [], "not a file with"),
    ("zip_data", {}, "not a file with"),
    ("column_sizes", [None], "column_sizes"),
    ("column_sizes", [-4, None, None, None], "column_sizes"),
    ("compression", "rm", "compression is 'rm'"),
    ("compression", None, "compression is None"),
]


@pytest.mark.parametrize(("key", "value", "message"), ODD)
def test_an_index_that_does_not_add_up(make_dataset: MakeDataset, key: str, value: Any, message: str) -> None:
    folder = make_dataset(4)
    edit(folder, lambda shards: shards[0].update({key: value}))
    refused(folder, message)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"shards": ' + "[" * 100_000, "{}", "[]", "3", '{"shards": 3}', '{"shards": [3]}',
     '{"shards": {"a": 1}}', '{"shards": [{"samples": ' + "9" * 5000 + "}]}", "\xff\xfe"],
    ids=range(10),
)  # fmt: skip
def test_json_bombs_and_other_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text, encoding="latin-1")
    refused(tmp_path, "not an MDS index")


def test_a_class_list_that_is_a_bomb_is_counted_anew(tmp_path: Path) -> None:
    image = {"image_bytes": 0, "floats": False}
    folder = shards_with(tmp_path / "set", COLUMNS, {**RECORD, "segments": [image, *RECORD["segments"]]})
    (folder / "classes.json").write_text("[" * 100_000)
    assert count_classes(folder) == {"1 2": 8}


@pytest.mark.parametrize(
    "segments",
    [3, {"text": "1"}, [3], ["text"], [{"text": {"a": 1}}], [{"image_bytes": -1}], [{"image_bytes": 1e300}],
     [{"image_bytes": True}], [None], "text"],
    ids=str,
)  # fmt: skip
def test_records_that_are_no_documents_are_bad_samples(tmp_path: Path, segments: Any) -> None:
    """Counted and passed over in training; named by what only looks."""
    folder = shards_with(tmp_path / "set", COLUMNS, {**RECORD, "segments": segments, "images": b""})
    found = list(sample(open_shards(folder), 3))
    assert all(isinstance(error, DataError) and "neither text nor image" in str(error) for error in found)
    assert bad_samples(folder) == 8


def test_a_record_nested_without_end_is_a_bad_sample(tmp_path: Path) -> None:
    folder = shards_with(
        tmp_path / "set", {**COLUMNS, "segments": "bytes"}, {**RECORD, "segments": b"[" * 100_000}
    )
    edit(
        folder,
        lambda shards: shards[0].update(column_encodings=[COLUMNS[n] for n in shards[0]["column_names"]]),
    )
    assert all(isinstance(error, DataError) for error in sample(open_shards(folder), 3))
    assert bad_samples(folder) == 8


@pytest.mark.parametrize("family", ["br", "bz2", "gz", "snappy", "zstd:7"])
def test_every_compression_unpacks_as_streaming_packs(family: str) -> None:
    from streaming.base.compression import compress

    content = np.random.default_rng(0).integers(0, 9, 100_000, dtype=np.uint8).tobytes()
    packed = compress(family, content)
    assert unpack("x", family, packed, len(content)) == content
    for size in (len(content) - 1, len(content) + 1, 0):
        with pytest.raises(DataError, match="x: "):
            unpack("x", family, packed, size)
    with pytest.raises(DataError, match="x: damaged"):
        unpack("x", family, packed[: len(packed) // 2] + b"\0" * 9, len(content))


def test_a_bomb_of_zstd_stops_at_what_the_index_says(tmp_path: Path, make_dataset: MakeDataset) -> None:
    """Half a gibibyte in 17 kB, where the index says four kilobytes."""
    folder = make_dataset(20)
    first = min(folder.glob("*.zstd"))
    first.write_bytes(zstd.compress(b"\0" * (1 << 29), 3))
    edit(folder, lambda shards: shards[0]["zip_data"].update(bytes=first.stat().st_size, hashes={}))
    tracemalloc.start()
    with pytest.raises(DataError, match="holds more than the"):
        list(sample(open_shards(folder), 3))
    made = loader(folder)
    with suppress(DataError):  # of a thread that fetches; where that comes late its samples are bad
        list(made)
        assert made.bad_samples
    assert tracemalloc.get_traced_memory()[1] < 1 << 28
    tracemalloc.stop()
    assert not (folder / first.stem).exists()


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) (w) file\n%%EOF\n"


def test_no_program_is_run_on_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PostScript is a language, and Pillow would hand it to Ghostscript."""

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript is run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    for decode in (
        lambda: decode_image(eps(), "x"),
        lambda: decode_train_crop(eps(), "x", 8, np.random.default_rng()),
    ):
        with pytest.raises(DataError, match="x: cannot decode the image"):
            decode()


def test_a_bomb_of_pixels_is_a_bad_sample(
    make_dataset: MakeDataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A PNG whose header says 30,000 x 30,000: 2.7 GB of pixels in 60 bytes."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    out = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    out.seek(8)
    for kind, body in chunks:
        out.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    folder = make_dataset(
        [Document(f"d{i}", "s", (Text("1 2"), Image(out.getvalue()), Text("3"))) for i in range(8)]
    )
    assert bad_samples(folder) == 8
    assert "decompression bomb" in caplog.text
