"""Captions of held-out images: on one rank and on two, what is kept of them, domains, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lcl_composer.config import compose
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.captioning import Captioning
from lcl_composer.evaluation.outcomes import read_outcomes
from lcl_composer.evaluation.writing import PICTURES
from lcl_composer.methods.caption import VQA, Caption
from lcl_composer.methods.lcl import LCL
from tests import runs
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks
from tests.evaluation.held_out import loader_of, write_documents
from tests.methods.whole_runs import fit, pairs, settings
from tests.models.tiny import RULES, TOKENIZER, tiny_method

#: Documents with two or three references; one without a caption, which is skipped.
TEXTS = {
    f"{'in-domain' if number % 3 else 'out-domain'}/{number}": [f"{number} 2 3", "4", "4 5"][: 2 + number % 2]
    for number in range(31)
} | {"bad/1": []}
GLOBAL_BATCH = 8


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.setenv(name, str(int(name.endswith("SIZE"))))  # so that it is put back
    yield
    clean_shared_memory()


@torch.no_grad()
def measured(rank: int, ranks: int, data: Path, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    as_launched(rank, ranks)
    model = tiny_method(Caption).eval()
    held_out = loader_of(data, model.layout(TOKENIZER, RULES), GLOBAL_BATCH // ranks)
    result = Captioning(TOKENIZER, max_new_tokens=6, meteor=False, **options).measure(model, held_out, folder)
    assert result is not None
    return result


def lines_of(folder: Path, name: str = "captions") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_two_ranks_write_and_score_what_one_does(tmp_path: Path) -> None:
    options = {"max_documents": 27, "batch_size": 3, "temperature": 1.0}
    data = write_documents(tmp_path / "data", TEXTS)
    expected = measured(0, 1, data, tmp_path / "one", options)
    for found in run_ranks(2, measured, data, tmp_path / "two", options):
        assert found == pytest.approx(expected, nan_ok=False)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two"))
    assert one == two
    assert expected["images"] == 27
    assert [line["id"] for line in lines_of(tmp_path / "one")] == [*TEXTS][:27]


def test_all_references_and_the_first_pictures_are_kept(tmp_path: Path) -> None:
    data = write_documents(tmp_path / "data", TEXTS)
    result = measured(0, 1, data, tmp_path, {})
    lines = lines_of(tmp_path)
    assert [line["references"] for line in lines] == [*TEXTS.values()][:-1]
    assert [line.get("image") for line in lines[:2]] == ["captions/000.jpg", "captions/001.jpg"]
    assert sum("image" in line for line in lines) == PICTURES == len([*(tmp_path / "captions").iterdir()])
    assert sum(line["CIDEr"] for line in lines) / len(lines) == pytest.approx(result["CIDEr"])
    cards = json.loads((tmp_path / "captions.json").read_text("utf-8"))
    assert cards[1] == {
        "id": lines[1]["id"],
        "file": "captions/001.jpg",
        "text": lines[1]["caption"],
        "references": lines[1]["references"],
    }
    outcomes = read_outcomes(tmp_path, "captioning")
    assert outcomes is not None
    assert outcomes.tallies["CIDEr"].value == pytest.approx(result["CIDEr"])
    assert outcomes.images == [line["id"] for line in lines]


def test_domains_are_scored_apart(tmp_path: Path) -> None:
    data = write_documents(tmp_path / "data", TEXTS)
    result = measured(0, 1, data, tmp_path, {})
    inside = {name: texts for name, texts in TEXTS.items() if name.startswith("in-")}
    alone = measured(0, 1, write_documents(tmp_path / "inside", inside), tmp_path / "x", {})
    assert (result["in-domain/images"], result["out-domain/images"]) == (20, 11)
    assert alone["CIDEr"] == result["in-domain/CIDEr"] == alone["in-domain/CIDEr"]
    assert not [key for key in result if key.startswith("near")]
    rows = Captioning(TOKENIZER).rows(result)
    assert [row.measured for row in rows[-2:]] == ["CIDEr in-domain", "CIDEr out-domain"]


def test_a_single_image_is_scored_and_said(tmp_path: Path) -> None:
    result = measured(0, 1, write_documents(tmp_path / "data", {"a": ["1 2"]}), tmp_path, {})
    assert (result["CIDEr"], result["chance/CIDEr"]) == (0.0, None)
    evaluation = Captioning(TOKENIZER)
    assert [row.measured for row in evaluation.rows(result)][-2:] == ["CIDEr", "ROUGE-L"]
    assert "1 held-out images, words by" in evaluation.note(result)
    said = "METEOR, a Java program, was not measured; CIDEr of a single image is 0"
    assert evaluation.note(result).endswith(said)


def test_no_image_is_refused_and_a_repeated_name_left_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation.captioning: data.eval holds no document to write about"):
        measured(0, 1, write_documents(tmp_path / "none", {"a": []}), tmp_path, {})
    twice = write_documents(tmp_path / "twice", {"a": ["1"], "b": ["2"]})
    model = tiny_method(Caption).eval()
    held_out = loader_of(twice, model.layout(TOKENIZER, RULES), 2)
    (batch,) = held_out
    batch["ids"] = ["a", "a"]
    repeated: Any = type("Loader", (list,), {"dataset": held_out.dataset})([batch])  # type: ignore[union-attr]
    evaluation = Captioning(TOKENIZER, max_new_tokens=3, meteor=False)
    with torch.no_grad():
        result = evaluation.measure(model, repeated, tmp_path)
    assert result is not None
    assert (result["images"], result["repeated_ids"]) == (1, 1)
    assert evaluation.note(result).endswith("; left out: 1 documents with the id of another")
    assert Captioning(TOKENIZER).measure(model, None, tmp_path) is None


@pytest.mark.parametrize("method", [LCL, VQA])
def test_methods_that_write_no_captions_are_refused(method: Any) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.captioning: the method \w+ writes no captions"):
        Captioning(TOKENIZER).start(tiny_method(method))
    Captioning(TOKENIZER).start(tiny_method(Caption))


def test_documents_that_cannot_be_captioned_are_said_before_training(tmp_path: Path) -> None:
    """Nothing but documents without a caption; one that has one is enough."""
    layout = tiny_method(Caption).layout(TOKENIZER, RULES)
    none = write_documents(tmp_path / "none", {"a": [], "b": [" "]})
    with pytest.raises(
        DataError, match=r"captioning: none of 2 documents of data.eval .*the first: .*'a': 1 imag"
    ):
        Captioning(TOKENIZER).check(loader_of(none, layout, 2))
    Captioning(TOKENIZER).check(
        loader_of(write_documents(tmp_path / "one", {"a": [], "b": ["1"]}), layout, 2)
    )
    Captioning(TOKENIZER).check([])


def test_texts_longer_than_the_positions_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before training, and at the end how many were cut."""
    model = tiny_method(Caption, prompt="1 2").eval()
    logits = model.generation.logits
    never = torch.zeros(TOKENIZER.vocab_size).index_fill(0, torch.tensor(TOKENIZER.end_of_text), -torch.inf)
    monkeypatch.setattr(model.generation, "logits", lambda hidden: logits(hidden) + never)
    evaluation = Captioning(TOKENIZER, max_new_tokens=500, meteor=False)
    evaluation.start(model)
    assert (
        "max_new_tokens is 500, but behind image and prompt the language model has positions for 34 tok"
        in (capsys.readouterr().out)
    )
    Captioning(TOKENIZER, max_new_tokens=34).start(model)
    assert not capsys.readouterr().out
    held_out = loader_of(
        write_documents(tmp_path / "data", {"a": ["1"], "b": ["2"]}), model.layout(TOKENIZER, RULES), 2
    )
    with torch.no_grad():
        result = evaluation.measure(model, held_out, tmp_path)
    assert result is not None
    assert "; 2 texts end at the language model's last position" in evaluation.note(result)
    assert len(lines_of(tmp_path)[0]["caption"].split()) == 34


def test_settings_out_of_range_name_the_evaluation() -> None:
    with pytest.raises(ConfigError, match=r"^evaluation\.captioning: beams=0; need"):
        Captioning(TOKENIZER, beams=0)


def test_sizes_below_1_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        Captioning(TOKENIZER, batch_size=0)
    with pytest.raises(ConfigError, match="max_documents=0"):
        Captioning(TOKENIZER, max_documents=0)


@pytest.mark.slow
def test_a_run_ends_in_captions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    data = runs.write_data(tmp_path / "data", pairs(12))
    values = settings(data, {"name": "caption"})
    values |= {"max_duration": "2ba", "evaluation": {"captioning": {"beams": 2, "max_new_tokens": 4}}}
    values["model"]["pooler"] = None
    fit(tmp_path, values)
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    lines = lines_of(tmp_path / "runs/tiny")
    assert summary["captioning"]["images"] == len(lines) == len(pairs(12))
    told = {document.id: [document.segments[1].text] for document in pairs(12)}  # type: ignore[union-attr]
    assert {line["id"]: line["references"] for line in lines} == told
    del values["data"]["eval"]
    with pytest.raises(
        ConfigError, match=r"evaluation.captioning: writes about held-out documents; set data.eval"
    ):
        compose(runs.write_yaml(tmp_path, values), [])
