"""Small sources of every kind for ``scripts/fuzz_convert.py``: its own, and the published layouts."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lcl_composer.convert.captions import Captions
from lcl_composer.convert.html import HTML
from lcl_composer.convert.imagefolder import ImageFolder
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.karpathy import Coco, Flickr30k
from lcl_composer.convert.mmc4 import MMC4
from lcl_composer.convert.nocaps import NoCaps
from lcl_composer.convert.obelics import Obelics, OmniCorpus
from lcl_composer.convert.source import Source
from lcl_composer.convert.table import Table

WORDS = "a red boat at the quay waits for wind and the harbour is still at this hour of the day "


@dataclass(frozen=True, slots=True)
class Sample:
    """A source to damage.

    Attributes:
        name: What it is called.
        folder: Its files.
        source: Makes the source of a damaged copy.
    """

    name: str
    folder: Path
    source: Callable[[Path], Source]


def picture(colour: str, kind: str) -> bytes:
    """An image file of one colour with a line in it."""
    image = Image.new("RGB", (72, 66), colour)
    image.paste("white", (0, 30, 72, 34))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def own_samples(folder: Path) -> list[Sample]:
    """Write sources and return them."""
    images = {"images/red.jpg": picture("red", "JPEG"), "images/blue.png": picture("blue", "PNG")}
    sources: list[tuple[str, Callable[[Path], Source], dict[str, bytes]]] = [
        ("html", partial(HTML, min_words=1), {**_pages(), **images}),
        ("captions", Captions, _captions(*images.values())),
        ("csv", Table, {"t.csv": _csv(), **images}),
        ("jsonl", Table, {"t.jsonl": "\n".join(map(json.dumps, _rows())).encode(), **images}),
        (
            "parquet",
            Table,
            {"t.parquet": _parquet({k: [r[k] for r in _rows()] for k in _rows()[0]}), **images},
        ),
        ("zipped csv", Table, {"t.csv.gz": gzip.compress(_csv()), **images}),
        ("img2dataset", Img2Dataset, _tars(*images.values())),
        ("img2dataset files", Img2Dataset, _sample_files(*images.values())),
        ("img2dataset parquet", Img2Dataset, _sample_table(*images.values())),
        ("mmc4", MMC4, {"docs_shard_0_v2.jsonl.zip": _mmc4(), **images}),
        ("obelics", partial(Obelics, bytes_column="bytes"), {"t.parquet": _obelics(*images.values())}),
        ("imagefolder", ImageFolder, _classes(*images.values())),
    ]
    for name, _, files in sources:
        for file, data in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return [Sample(name, folder / name, make) for name, make, _ in sources]


def _pages() -> dict[str, bytes]:
    page = (
        f"<html><body><h1>Boats</h1><p>{WORDS}&amp; caf&eacute;</p><img src='images/red.jpg'><p>{WORDS}</p>"
    )
    head = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>'
    xhtml = f'{head}<p>{WORDS}</p><img src="images/blue.png"/></body></html>'
    return {"a.html": page.encode(), "b.htm": page.encode("utf-16"), "c.xhtml": xhtml.encode()}


def _captions(red: bytes, blue: bytes) -> dict[str, bytes]:
    texts = {"red.txt": b"a red boat", "blue.txt": "a caf\u00e9".encode()}
    return {"red.jpg": red, "blue.png": blue, **texts}


def _rows() -> list[dict[str, Any]]:
    names = ("images/red.jpg", "images/blue.png")
    return [{"image": name, "caption": f'A "boat", {name}', "similarity": 0.3} for name in names]


def _csv() -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, _rows()[0])
    writer.writeheader()
    writer.writerows(_rows())
    return file.getvalue().encode()


_FACTS = b'{"caption": "a boat", "similarity": 0.3}'
_STATUS = {"key": ["1", "2", "3"], "status": ["success", "success", "failed"]}


def _tars(red: bytes, blue: bytes) -> dict[str, bytes]:
    tar = _tar({"1.jpg": red, "1.txt": b"a boat", "1.json": _FACTS, "2.png": blue, "2.txt": b"two"})
    return {"0.tar": tar, "0.parquet": _parquet(_STATUS)}


def _sample_files(red: bytes, blue: bytes) -> dict[str, bytes]:
    files = {"0/1.jpg": red, "0/1.txt": b"a boat", "0/1.json": _FACTS, "0/2.png": blue, "0/2.txt": b"two"}
    return {**files, "0.parquet": _parquet(_STATUS)}


def _sample_table(red: bytes, blue: bytes) -> dict[str, bytes]:
    captions = ["a boat", "two", None]
    return {"0.parquet": _parquet({**_STATUS, "caption": captions, "jpg": [red, blue, None]})}


def _mmc4() -> bytes:
    match = {"image_name": "red.jpg", "matched_text_index": 1, "matched_sim": 0.4}
    line = json.dumps({"url": "u", "text_list": [WORDS, WORDS], "image_info": [match]})
    return _zip("docs_shard_0_v2.jsonl", "\n".join([line] * 3))


def _obelics(red: bytes, blue: bytes) -> bytes:
    texts, data = [[None, WORDS], [WORDS, None]], [[red, None], [None, blue]]
    return _parquet({"images": [["u", None], [None, "v"]], "texts": texts, "bytes": data})


def _classes(red: bytes, blue: bytes) -> dict[str, bytes]:
    return {"train/boat/red.jpg": red, "train/sea/blue.png": blue, "val/boat/red.jpg": red}


def published_samples(formats: Path) -> list[Sample]:
    """Return the sources in a folder of published layouts."""
    makers: dict[str, Callable[[Path], Source]] = {
        "coco": Coco,
        "flickr30k": Flickr30k,
        "nocaps": NoCaps,
        "imagenet": ImageFolder,
        "laion400m": Img2Dataset,
        "mmc4": partial(MMC4, variant="full"),
        "obelics": partial(Obelics, images=formats / "url_images"),
        "omnicorpus": partial(OmniCorpus, images=formats / "url_images"),
    }
    found = [name for name in makers if (formats / name).is_dir()]
    return [Sample(f"published {name}", formats / name, makers[name]) for name in found]


def _parquet(columns: dict[str, list]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _zip(name: str, text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return buffer.getvalue()
