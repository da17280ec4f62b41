"""The report of a conversion."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from lcl_composer.convert.report import ConversionReport, Distribution
from lcl_composer.data.document import Document, Image, Text


def example() -> ConversionReport:
    report = ConversionReport("html", "pages", {"min_words": 20})
    for number in (1, 1, 4):
        segments = (Text("three short words"), *[Image(b"12345")] * number)
        report.keep(Document(f"d{number}", "here", segments), "train" if number == 1 else "held_out", 4)
    report.drop("no image", "x.html")
    report.drop("no image", "y.html")
    report.drop_image("file missing", "y.html: a.png")
    report.drop_image("[/red] bracket", "z.html: a.png")
    return report


@pytest.mark.parametrize(
    ("values", "mean", "median"), [([], 0, 0), ([7], 7, 7), ([1, 2, 9], 4, 2), ([1, 2, 3, 10], 4, 2)]
)
def test_distribution(values, mean, median):
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    assert (distribution.mean, distribution.median, distribution.total) == (mean, median, sum(values))


def test_read_is_kept_and_dropped():
    report = example()
    assert report.documents == 3
    assert report.read == report.documents + sum(report.dropped.values())
    assert (report.images.total, report.words.total, report.image_bytes) == (6, 9, 30)


def test_the_table_says_what_was_kept_and_why_the_rest_was_not():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(example().table())
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in console.export_text().splitlines()]
    assert ["documents kept", "3 (train 2, held_out 1)"] in rows
    assert ["dropped: no image", "2"] in rows
    assert ["left out: file missing", "1"] in rows
    assert ["left out: [/red] bracket", "1"] in rows
    assert ["images a document", "2.0 (median 1)"] in rows


def test_the_json_holds_it_all(tmp_path):
    example().save(tmp_path / "report.json")
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["kept"] == {"train": 2, "held_out": 1}
    assert facts["dropped"] == {"no image": 2}
    assert facts["images"] == {"mean": 2, "median": 1, "histogram": {"1": 2, "4": 1}}
    assert facts["named"]["file missing"] == ["y.html: a.png"]
    assert facts["options"] == {"min_words": 20}


def test_only_the_first_failures_are_named_but_all_counted():
    report = ConversionReport("captions", "folder", {})
    for number in range(1000):
        report.drop("file empty", str(number))
    assert report.dropped["file empty"] == 1000
    assert report.named["file empty"] == [str(n) for n in range(20)]


def test_similarities_are_counted_in_hundredths_and_only_numbers(tmp_path):
    report = example()
    for value in (0.31, "0.314", -0.2, 1e30, None, "x", True, float("nan"), float("inf")):
        report.add_similarity(value)
    assert report.similarities.counts == {31: 2, -20: 1, 10000: 1}
    report.save(tmp_path / "report.json")
    assert ConversionReport.load(tmp_path / "report.json").similarities == report.similarities
