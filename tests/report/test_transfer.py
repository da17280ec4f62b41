"""The file and the page of a suite, from runs that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selectolax.lexbor import LexborHTMLParser as HTMLParser

from lcl_composer.evaluation.outcomes import Outcomes, Tally, outcomes_file, write_outcomes
from lcl_composer.report.transfer import Entry, read_entry, results_of
from lcl_composer.report.transfer_page import render, rows_of
from tests.report.run_folders import write_run

CLASSES = ["<cat>", "dog", "owl"]


def write_classified(parent: Path, name: str, right: int, seed: int = 17, **changes: Any) -> Path:
    """A finished run that classified 30 images, ``right`` of them right, the others as the next class."""
    folder = write_run(parent, name, seed=seed, evaluation={"classify": {}}, **changes)
    summary = json.loads((folder / "summary.json").read_text())
    measured = {"top1_accuracy": right / 30, "chance": 1 / 3, "classes": 3, "kind": "probe"}
    features = {
        "encoder": "timm's vit",
        "features": "patch tokens",
        "weights": "0123456789abcdef",
        "width": 32,
    }
    summary |= {"classify": measured, "features": features}
    (folder / "summary.json").write_text(json.dumps(summary))
    labels = [i % 3 for i in range(30)]
    predicted = [label if i < right else (label + 1) % 3 for i, label in enumerate(labels)]
    tally = Tally([float(i < right) for i in range(30)])
    images = [str(i) for i in range(30)]
    write_outcomes(Outcomes(images, {"top1_accuracy": tally}, CLASSES, labels, predicted), folder, "classify")
    return folder


def encoders(*labels: str) -> list[dict[str, Any]]:
    return [{"label": label, "settings": {"name": "exported"}, "digest": label * 8} for label in labels]


def entries_of(tmp_path: Path) -> list[Entry]:
    made = [("lcl", "a", 27, 17), ("lcl", "b", 24, 18), ("clip", "c", 26, 17), ("raw", "d", 3, 17)]
    return [
        read_entry(label, "classify", write_classified(tmp_path, name, right, seed, pictures=name == "a"))
        for label, name, right, seed in made
    ]


def test_numbers_come_with_intervals_and_the_protocol_without_the_encoder(tmp_path: Path) -> None:
    model = {"encoder": {"name": "exported", "folder": "x"}, "pooler": {"name": "attentive"}}
    folder = write_classified(tmp_path, "a", 15, model=model)
    entry = read_entry("lcl", "classify", folder)
    found = results_of([entry], encoders("lcl"), [])
    (result,) = found["results"]
    assert result["numbers"] == {
        "classify/top1_accuracy": 0.5,
        "classify/chance": pytest.approx(1 / 3),
        "classify/classes": 3.0,
    }
    low, high = result["intervals"]["classify/top1_accuracy"]
    assert 0.3 < low < 0.4 < 0.6 < high <= 0.7
    assert (result["seed"], result["features"]["width"], found["seeds"]) == (17, 32, [17])
    protocol = found["protocol"]["classify"]
    assert protocol["model"] == {"pooler": {"name": "attentive"}}
    assert protocol["optimizer"]["lr"] == 1e-3
    assert not {"seed", "run_name", "save_folder"} & protocol.keys()
    assert found["versions"]["torch"]
    json.dumps(found, allow_nan=False)


def test_damaged_outcomes_leave_the_number_without_an_interval(tmp_path: Path) -> None:
    folder = write_classified(tmp_path, "a", 15)
    outcomes_file(folder, "classify").write_text("{")
    entry = read_entry("lcl", "classify", folder)
    assert entry.numbers["classify/top1_accuracy"] == 0.5
    assert entry.intervals == {}
    assert "damaged" in entry.run.notes[-1]


def test_encoders_of_one_label_are_averaged_and_the_best_is_marked(tmp_path: Path) -> None:
    (row,) = rows_of(entries_of(tmp_path), ["lcl", "clip", "raw"], "classify")
    assert (row.group, row.label, row.unit, row.note) == ("classify", "Top1 accuracy", "%", "chance 33.3")
    assert [cell.mark for cell in row.cells] == ["close", "best", ""]
    assert row.cells[0].text == "85.0 ± 7.1"
    assert row.cells[1].text.startswith("86.7 [")
    assert row.cells[0].detail.startswith("a: 90.0 (")


def test_scores_that_are_no_shares_stay_as_they_are(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", evaluation={"caption": {}})
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"caption": {"cider": 1.234, "images": 9}}))
    (row,) = rows_of([read_entry("lcl", "write", folder)], ["lcl"], "write")
    assert (row.group, row.label, row.unit, row.cells[0].text) == ("write: caption", "Cider", "", "1.23")


def test_chance_stands_beside_the_number_that_it_belongs_to(tmp_path: Path) -> None:
    entry = read_entry("lcl", "retrieval", write_run(tmp_path, "a", evaluation={"retrieval": {}}))
    rows = rows_of([entry], ["lcl"], "retrieval")
    assert [(row.label, row.note) for row in rows[:2]] == [
        ("Text to image, recall@1", "chance 0.391"),
        ("Text to image, recall@5", "chance 1.95"),
    ]
    assert len(rows) == 6


def test_chances_that_differ_stand_there_with_their_ends(tmp_path: Path) -> None:
    """CIDEr's with another image's captions is each run's own."""
    entries = []
    for name, chance in (("a", 0.2), ("b", 0.31), ("c", 0.25)):
        folder = write_run(tmp_path, name, evaluation={"captioning": {}})
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"captioning": {"CIDEr": 0.3, "chance/CIDEr": chance}, "features": {"weights": name}}
        (folder / "summary.json").write_text(json.dumps(summary))
        entries.append(read_entry("lcl", "caption", folder))
    (row,) = rows_of(entries, ["lcl"], "caption")
    assert (row.label, row.note) == ("CIDEr", "chance 20 to 31")
    page = HTMLParser(render(entries, results_of(entries, encoders("lcl"), []), "1"))
    described = [row.css("td")[-1].text() for row in page.css("#encoders .described tbody tr")]
    assert described == ["a", "b", "c"]


def test_the_page_shows_all_of_it(tmp_path: Path) -> None:
    entries = entries_of(tmp_path)
    written = [{"id": "1", "file": "captions/0.jpg", "text": "a red dog", "references": ["a dog", "one dog"]}]
    folder = entries[0].run.folder
    (folder / "captions").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "captions/0.jpg")
    (folder / "captions.json").write_text(json.dumps(written))
    failures = [{"encoder": "raw", "task": "retrieve", "reason": "no <data>"}]
    page = HTMLParser(render(entries, results_of(entries, encoders("lcl", "clip", "raw"), failures), "1"))
    assert "retrieve of raw failed: no <data>" in page.css_first("#failures").text()
    heads = [cell.text().strip() for cell in page.css("#results thead th")[1:]]
    assert [head.split()[0] for head in heads] == ["lcl", "clip", "raw"]
    assert page.css_first("#results td[data-best]").text().strip().startswith("86.7")
    figures = page.css("#confusions figure")
    assert len(figures) == 3
    assert "<cat> taken for dog: 1 of 10" in figures[0].css_first(".most").text()
    titles = [title.text() for title in figures[0].css("title")]
    assert "dog as dog: 9 of 10" in titles
    assert page.css_first("#captions dd").text() == "a red dog"
    assert page.css_first("#captions img").attributes["src"].startswith("data:image/jpeg")
    assert len(page.css("#attention figure")) == 1
    assert page.css("#retrieval .query")
    assert "0123456789ab" in page.css_first("#encoders").text()
    assert not [n for n in page.css("[src], [href]") if "://" in (n.attributes.get("src") or "")]


def test_damaged_captions_are_said(tmp_path: Path) -> None:
    folder = write_classified(tmp_path, "a", 15)
    item = {"id": "1", "file": "../secret.jpg", "text": "", "references": []}
    (folder / "captions.json").write_text(json.dumps([item]))
    entries = [read_entry("lcl", "classify", folder)]
    page = render(entries, results_of(entries, encoders("lcl"), []), "1")
    assert "captions.json is damaged and left out" in page
