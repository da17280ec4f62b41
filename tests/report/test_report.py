from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from selectolax.lexbor import LexborHTMLParser as HTMLParser
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.errors import DataError
from lcl_composer.report.metrics_file import format_line
from lcl_composer.report.report_page import render
from lcl_composer.report.results import results
from lcl_composer.report.run import read_runs
from lcl_composer.report.variants import differing, group
from tests import runs
from tests.report.run_folders import write_run


def page_of(*folders: Path) -> HTMLParser:
    return HTMLParser(render(read_runs(folders), "0"))


def table(page: HTMLParser, section: str) -> dict[str, dict[str, Any]]:
    """The rows of a section's first table by label, each cell's node by its column's name."""
    found = page.css_first(f"#{section} table")
    columns = [
        cell.css_first(".head span, .head > span").text().strip() for cell in found.css("thead th")[1:]
    ]
    rows = {}
    for row in found.css("tbody tr"):
        if row.css("td"):
            label = row.attributes.get("data-row") or row.css_first("th").text().strip()
            rows[label] = dict(
                zip([re.sub(r" \d+ runs$", "", c) for c in columns], row.css("td"), strict=True)
            )
    return rows


def best(row: dict[str, Any]) -> set[str]:
    return {name for name, cell in row.items() if "data-best" in cell.attributes}


GENERATION = "Training loss, mean of the last 5 batches|Generation"
RECALL = "Retrieval among 256 held-out images|Text to image R@1"


def test_only_the_settings_that_differ_are_a_table_and_the_others_are_listed(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, "a", weight=0.1), write_run(tmp_path, "b", weight=0.0, dropout=0.1))
    settings = table(page, "settings")
    assert {key: {n: c.text() for n, c in row.items()} for key, row in settings.items()} == {
        "method.contrastive_weight": {"a": "0.1", "b": "0"},
        "dropout": {"a": "–", "b": "0.1"},
    }
    alike = {
        pair.css_first("dt").text(): pair.css_first("dd").text() for pair in page.css("#settings .pairs div")
    }
    assert alike["optimizer.betas"] == "[0.9, 0.98]"
    assert "run_name" not in alike
    assert "save_folder" not in alike


def test_seeds_of_two_versions_are_one_variant(tmp_path: Path) -> None:
    """The older one had no key for TF32, and waited less for a download."""
    whole = runs.settings(tmp_path) | {"run_name": "r", "seed": 17}
    whole["data"] = {**whole["data"], "train": {**whole["data"]["train"], "download_retry": 2}}
    newer = whole | {"seed": 18, "tf32": False}
    newer["data"] = {**whole["data"], "train": {**whole["data"]["train"], "download_retry": 12}}
    folders = [write_run(tmp_path, name) for name in ("r-s17", "r-s18", "r-s19")]
    for folder, settings in zip(folders, (whole, newer, newer | {"tf32": True}), strict=True):
        (folder / "config.yaml").write_text(json.dumps(settings))
    assert [[run.name for run in variant.runs] for variant in group(read_runs(folders))] == [
        ["r-s17", "r-s18"],
        ["r-s19"],
    ]


def test_the_best_is_the_lowest_loss_and_the_highest_recall(tmp_path: Path) -> None:
    low = write_run(tmp_path, "low", generation=1.5, recall=0.3, lr=1)
    rows = table(page_of(low, write_run(tmp_path, "high", generation=2.5, recall=0.6, lr=2)), "results")
    assert best(rows[GENERATION]) == {"low"}
    assert best(rows["Held-out loss, last evaluation|Generation"]) == {"low"}
    assert best(rows[RECALL]) == {"high"}
    assert best(rows["Linear probe of the frozen encoder|Accuracy"]) == {"high"}
    assert best(rows["Linear probe of the frozen encoder|Accuracy before training"]) == set()
    assert rows[RECALL]["high"].text() == "60.0"
    assert rows[GENERATION]["low"].text() == "1.500"


def test_other_evaluations_have_rows_beside_chance(tmp_path: Path) -> None:
    folders = []
    for seed, found in ((17, 0.25), (18, 0.35)):
        found = {
            "top1": found,
            "top5": 0.5,
            "chance": 0.1,
            "CIDEr": 12.0,
            "chance/CIDEr": 3.5,
            "images": 40,
            "worst": "a",
        }
        folder = write_run(tmp_path, f"run-s{seed}", seed=seed, evaluation={"classification": {}})
        path = folder / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "classification": found}))
        folders.append(folder)
    folders.append(write_run(tmp_path, "without", weight=0.0))
    rows = {row.label: row for row in results(group(read_runs(folders)), [])}
    shares, cider = rows["Top1"], rows["CIDEr"]
    assert (shares.group, shares.unit, shares.note) == ("Classification at the end", "%", "chance 10")
    assert [cell.text for cell in shares.cells] == ["30.0 ± 7.1", ""]
    assert rows["Top5"].note == ""  # five guesses
    assert (cider.cells[0].text, cider.note) == ("12.0 ± 0.0", "chance 3.5")
    assert not rows.keys() & {"Images", "Chance", "Chance, CIDEr", "Worst"}


def test_equals_are_both_best_unless_nothing_differs(tmp_path: Path) -> None:
    one, two = write_run(tmp_path, "one", lr=1), write_run(tmp_path, "two", lr=2)
    worse = write_run(tmp_path, "worse", lr=3, recall=0.4)
    assert best(table(page_of(one, two, worse), "results")[RECALL]) == {"one", "two"}
    assert best(table(page_of(one, two), "results")[RECALL]) == set()
    assert best(table(page_of(one), "results")[RECALL]) == set()


def test_sums_of_other_weights_are_not_compared(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, f"w{w}", weight=w, generation=1 + w) for w in (0.1, 1.0)]
    rows = table(page_of(*folders), "results")
    total = "Training loss, mean of the last 5 batches|Total"
    assert best(rows[total]) == set()
    assert "not comparable: method.contrastive_weight" in rows[total]["w0.1"].parent.text()
    assert best(rows[GENERATION]) == {"w0.1"}


def notes(*folders: Path) -> dict[str, str]:
    variants = group(read_runs(folders))
    return {row.label: row.note for row in results(variants, differing(variants))}


def test_why_nothing_is_marked_is_said_in_short_and_only_of_those_with_numbers(tmp_path: Path) -> None:
    one = write_run(tmp_path, "one")
    method = {"name": "lcl", "contrastive_weight": 0.1, "generation_weight": 1.0, "a": 1, "b": 2}
    two = write_run(tmp_path, "two", method=method)
    assert notes(one, two)["Total"] == "not comparable: method.a, method.b differ"
    three = write_run(tmp_path, "three", method=method | {"c": 3, "d": 4})
    with (three / "metrics.jsonl").open("a") as file:
        file.write(format_line(20, {"loss/train/matching": 1.0}))
    found = notes(one, three)
    assert found["Total"] == "not comparable: method.a, method.b, method.c and 1 more differ"
    assert found["Matching"] == ""


def test_contrastive_losses_over_other_batch_sizes_are_not_compared(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, f"b{b}", global_train_batch_size=b) for b in (8, 64)]
    rows = table(page_of(*folders), "results")
    assert best(rows["Training loss, mean of the last 5 batches|Contrastive"]) == set()


def test_other_training_data_makes_the_training_loss_another_quantity(tmp_path: Path) -> None:
    generate = ({"train": {"local": f"data/{n}"}, "max_tokens": 64} for n in ("a", "b"))
    folders = [write_run(tmp_path, f"d{i}", generation=i, data=data) for i, data in enumerate(generate)]
    rows = table(page_of(*folders), "results")
    assert best(rows[GENERATION]) == set()
    assert best(rows["Held-out loss, last evaluation|Generation"]) == {"d0"}


def test_seeds_are_one_column_with_mean_and_deviation(tmp_path: Path) -> None:
    values = {17: 0.5, 18: 0.6, 19: 0.4}
    seeds = [write_run(tmp_path, f"base-s{seed}", seed=seed, recall=r) for seed, r in values.items()]
    other = write_run(tmp_path, "other", recall=0.45, lr=3)
    rows = table(page_of(seeds[0], other, *seeds[1:]), "results")
    assert set(rows[RECALL]) == {"base", "other"}
    spread = statistics.stdev(values.values())
    assert rows[RECALL]["base"].text() == f"50.0 ± {100 * spread:.1f}"
    assert "base-s18: 60.0" in rows[RECALL]["base"].attributes["title"]
    assert best(rows[RECALL]) == {"base"}
    assert "close" in rows[RECALL]["other"].attributes["class"]  # 0.05 below the best, whose sd is 0.1


def test_an_unfinished_run_says_so_and_is_not_compared(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, name, generation=g, lr=g) for name, g in (("a", 2.0), ("b", 3.0))]
    stopped = write_run(tmp_path, "stopped", generation=0.1, finished=False, batches=7, lr=9)
    page = page_of(*folders, stopped)
    assert "unfinished: its metrics end at batch 7" in page.css_first("#runs .notes").text()
    row = table(page, "results")[GENERATION]
    assert best(row) == {"a"}
    assert row["stopped"].text() == "0.100"
    assert "open" in row["stopped"].attributes["class"]


def test_a_summary_that_training_has_passed_is_not_final(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "resumed")
    (folder / "launches" / "1").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(format_line(30, {"epoch": 1, "loss/train/generation": None}) + '{"step": 31, "lo')
    page = page_of(folder)
    notes = page.css_first("#runs .notes").text()
    for part in ("launched 2 times", "went on after summary.json (batch 20)", "not finite from batch 30"):
        assert part in notes
    assert RECALL not in table(page, "results")


def test_missing_and_damaged_files_are_said(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text("a: [1")
    lost = write_run(tmp_path, "lost", pictures=True)
    (lost / "config.yaml").unlink()
    (lost / "gallery.json").write_text('{"items": {}, "candidates": 1, "text_to_image": [{"item": 0}]}')
    (lost / "attention_maps/ba000010.png").write_bytes(b"no image")
    page = page_of(bare, lost, write_run(tmp_path, "whole"))
    notes = page.css_first("#runs .notes").text()
    for part in (
        "config.yaml cannot be read",
        "metrics.jsonl is missing",
        "config.yaml is missing",
        "gallery.json",
    ):
        assert part in notes
    assert len(page.css("#attention img")) == 1
    assert len(page.css("#runs tbody tr")) == 3


def test_pictures_are_inlined_and_right_ones_marked(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, "a", pictures=True), write_run(tmp_path, "b", lr=2, pictures=True))
    queries = page.css(".text_to_image .query")
    assert len(queries) == 2
    answers = queries[0].css(".answer")
    assert [answer.css_first(".head span").text() for answer in answers] == ["a", "b"]
    marks = [figure.attributes["class"] for figure in answers[0].css("figure")]
    assert marks == ["right", "wrong", "wrong"]
    assert "right one at 3 of 3" in queries[1].css_first(".who").text()
    assert [item.attributes["class"] for item in page.css(".image_to_text .query")[0].css("li")[:3]] == marks
    assert [label.text() for label in page.css("#attention label")][:2] == ["batch 10", "batch 20"]
    assert all(image.attributes["src"].startswith("data:image/") for image in page.css("img"))


def test_a_gallery_cannot_read_outside_its_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "a", pictures=True)
    (folder / "gallery/000.jpg").rename(tmp_path / "secret.jpg")
    text = (folder / "gallery.json").read_text().replace("gallery/000.jpg", "../../secret.jpg")
    (folder / "gallery.json").write_text(text)
    assert page_of(folder).css(".text_to_image .asked img")[0].attributes["src"] in ("", None)


def test_curves_are_whole_and_thinned(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, "long", batches=3000), write_run(tmp_path, "short", lr=2)]
    data = json.loads(page_of(*folders).css_first("#data").text())
    long, short = (run["series"]["loss/train/generation"] for run in data["runs"])
    assert len(long["x"]) == len(long["lo"]) == 600
    assert long["lo"][0] <= long["y"][0] <= long["hi"][0]
    assert short["x"] == list(range(1, 21))
    assert "lo" not in short
    assert data["runs"][0]["axes"]["documents"][-1] == 96000
    panels = {panel["title"]: panel for panel in data["panels"]}
    assert panels["Generation loss"]["held_out"] == "metrics/eval/generation"
    assert panels["Contrastive loss"]["held_out"] is None


def test_more_variants_than_colours_are_told_apart(tmp_path: Path) -> None:
    page = page_of(*(write_run(tmp_path, f"run{i}", lr=i + 1) for i in range(13)))
    marks = [node.attributes["class"] for node in page.css("#results thead .swatch")]
    assert len(set(marks)) == len(marks) == 13


def test_environment_differences(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, "a"), write_run(tmp_path, "b", lr=2)]
    facts = json.loads((folders[1] / "environment.json").read_text())
    (folders[1] / "environment.json").write_text(json.dumps(facts | {"packages": {"torch": "2.8.0"}}))
    (folders[1] / "code.patch").write_text("+ a line\n")
    rows = table(page_of(*folders), "environment")
    assert {key: [cell.text() for cell in row.values()] for key, row in rows.items()} == {
        "torch": ["2.7.0", "2.8.0"],
        "code.patch": ["–", "1 lines (" + rows["code.patch"]["b"].text()[9:]],
    }


HOSTILE = "x<script>alert(1)<script>&\"'{{ 7 * 7 }}"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(2)>"
    folder = write_run(tmp_path, HOSTILE, pictures=True, note=bad)
    gallery = (folder / "gallery.json").read_text().replace("text 0", bad)
    (folder / "gallery.json").write_text(gallery)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(format_line(1, {bad: 1.0}) + format_line(2, {bad: 2.0}))
    page = page_of(folder, write_run(tmp_path, "b", lr=2))
    assert [script.attributes.get("id") for script in page.css("script")] == ["data", None]
    assert not [node for node in page.css("*") if any(name.startswith("on") for name in node.attributes)]
    assert not [image for image in page.css("img") if image.attributes["src"] == "x"]
    data = json.loads(page.css_first("#data").text())
    assert data["variants"][0] == HOSTILE
    assert bad in [panel["title"] for panel in data["panels"]]
    assert page.css_first("#runs .head span").text() == HOSTILE
    assert list(table(page, "results")[RECALL]) == [HOSTILE, "b"]


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    text = render(read_runs([write_run(tmp_path, "a", pictures=True)]), "0")
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|@import|url\((?!#)|<script[^>]+src", text)


def lcl_report(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    return result.exit_code, result.output


def test_bad_folders_are_one_line_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "alpha")
    (tmp_path / "empty").mkdir()
    for arguments, part in (
        (["alpha"], "alpha: no such folder; did you mean runs/alpha?"),
        (["runs/alphq"], "runs/alphq: no such folder; did you mean 'alpha'?"),
        (["empty"], "empty: not a run folder"),
        (["runs/alpha/config.yaml"], "config.yaml: is a file"),
        (["runs/alpha", "runs/../runs/alpha"], "is named twice"),
        (["runs/alpha", "--out", "empty"], "--out empty: cannot be written"),
    ):
        code, output = lcl_report(*arguments)
        assert code == 2
        assert part in output
        assert output.count("\n") == 1, output


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / parent, "same", lr=i) for i, parent in enumerate(("here", "there"))]
    assert [run.name for run in read_runs(folders)] == ["here/same", "there/same"]
    with pytest.raises(DataError, match="named twice"):
        read_runs([folders[0], folders[0]])


def test_the_command_writes_the_page_without_torch(tmp_path: Path) -> None:
    arguments = ["report", str(write_run(tmp_path, "a")), "--out", str(tmp_path / "o/r.html")]
    code = (
        "import sys; from typer.testing import CliRunner; from lcl_composer.cli import app\n"
        f"result = CliRunner().invoke(app, {arguments!r})\n"
        "print(result.exit_code, [m for m in ('torch', 'composer', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"
    assert (tmp_path / "o/r.html").read_text().startswith("<!doctype html>")
