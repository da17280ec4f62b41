"""Records of any shape are rejected or converted; none ends a conversion."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcl_composer.convert.files import parse_json
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.karpathy import Coco
from lcl_composer.convert.karpathy import _facts as karpathy_facts
from lcl_composer.convert.mmc4 import MMC4, MMC4Pairs
from lcl_composer.convert.nocaps import NoCaps
from lcl_composer.convert.nocaps import _facts as nocaps_facts
from lcl_composer.convert.obelics import Obelics
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Rejected, Source
from lcl_composer.convert.table import Row, Table
from lcl_composer.convert.tars import Group
from lcl_composer.convert.worker import valid_document
from tests.convert.samples import picture

HERE = Path(__file__).parent
OPTIONS: dict[str, Any] = {"min_similarity": 0.1, "language": ["en"]}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.integers(), st.floats(), st.text(max_size=3),
    st.sampled_from(["../x", "/etc/passwd", "\ud800", "\0", "http://[", "10" * 200, "samples.py", "en"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
)


def record(*keys: str) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values))


images = st.lists(record("image_name", "matched_text_index", "matched_sim") | values, max_size=3)
lists = st.lists(scalars | st.dictionaries(st.sampled_from(["bytes", "path"]), scalars), max_size=2) | values
pages = st.fixed_dictionaries(
    {"text_list": st.lists(scalars, max_size=3), "image_info": images},
    optional={
        "similarity_matrix": st.lists(st.lists(scalars, max_size=3) | scalars, max_size=3),
        "url": values,
    },
)
CASES: dict[str, tuple[Source, st.SearchStrategy, Callable[[Any], Any]]] = {
    "mmc4": (MMC4(HERE, images=HERE), pages | values, lambda r: (0, json.dumps(r).encode())),
    "pairs": (MMC4Pairs(HERE, images=HERE), pages | values, lambda r: (0, json.dumps(r).encode())),
    "obelics": (
        Obelics(HERE, images=HERE),
        st.fixed_dictionaries(dict.fromkeys(("images", "texts"), lists)),
        lambda r: r,
    ),
    "table": (
        Table(HERE, **OPTIONS),
        record("image", "caption", "similarity", "language"),
        lambda r: Row("", r),
    ),
    "img2dataset": (
        Img2Dataset(HERE, **OPTIONS),
        record("similarity", "LANGUAGE", "caption") | values,
        lambda r: Group("x", {".jpg": picture(8), ".json": json.dumps(r).encode()}),
    ),
    "coco": (
        Coco(HERE),
        record("split", "imgid", "filename", "filepath", "sentences") | values,
        karpathy_facts,
    ),
    "nocaps": (
        NoCaps(HERE, images=HERE), record("id", "file_name", "domain") | values, lambda r: nocaps_facts(r, {})
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_record(case, data):
    source, strategy, prepare = CASES[case]
    report = ConversionReport("test", "here", {})
    raw = prepare(data.draw(strategy))
    with contextlib.suppress(Rejected):
        for sample in source.samples("name", raw, report):
            record = valid_document(sample.document).to_record()
            assert all(record[key].encode() for key in ("id", "source"))


@given(st.binary(max_size=30))
def test_any_line(line):
    with contextlib.suppress(Rejected):
        assert isinstance(parse_json(line), dict)
