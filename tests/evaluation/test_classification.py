from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score
from torch import Tensor

from lcl_composer.config.schema import StreamConfig
from lcl_composer.data.collate import bad_sample, collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.labelled import Labelled
from lcl_composer.data.loader import build_loader
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.classification import Classification, accuracies, rank_first, rank_of_label
from lcl_composer.evaluation.outcomes import read_outcomes
from lcl_composer.methods.classify import Head
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks
from tests.runs import picture

CLASSES = tuple("abcdefgh")


def test_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 8)), rng.integers(0, 8, 300)
    logits[np.arange(300), labels] += 1
    ranks = rank_of_label(torch.tensor(logits)[None], torch.tensor(labels))[0]
    predicted = rank_first(torch.tensor(logits)[None])[0].numpy()
    found = accuracies(ranks, torch.tensor(labels), 8)
    assert found["top1"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert found["per_class"] == pytest.approx(recall_score(labels, predicted, average=None))
    assert found["mean_per_class"] == pytest.approx(recall_score(labels, predicted, average="macro"))


def test_equal_logits_go_to_the_lower_number() -> None:
    logits = torch.tensor([[[1.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 3.0]]])
    labels = torch.tensor([2, 0, 3])
    assert rank_of_label(logits, labels).tolist() == [[1, 0, 0]]
    assert rank_first(logits).tolist() == [[1, 0, 3]]
    found = accuracies(torch.tensor([1, 0, 0]), labels, 4)
    assert found["per_class"] == [1.0, None, 0.0, 1.0]
    assert found["mean_per_class"] == pytest.approx(2 / 3)


class Pixels:
    """A classifier of two heads: the first goes by the first pixel, the second is always a class further."""

    terms: dict[str, Any] = {"classification": None}  # noqa: RUF012
    classes = CLASSES
    heads = [Head(0.1, 0.0), Head(0.2, 0.3)]  # noqa: RUF012

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        found = batch["pixel_values"][:, 0, 0, 0].long() % 8
        logits = torch.nn.functional.one_hot(torch.stack([found, (found + 1) % 8]), 8).float()
        labels = batch["targets"].index_select(0, batch["predicting"])
        return {"logits": logits, "labels": labels}


def batches(numbers: list[int], shift: int = 0, size: int = 4) -> list[Any]:
    """Image ``i`` shows class ``i + shift`` and is labelled ``i``."""
    layout, made = Labelled(CLASSES), []
    for i in numbers:
        laid = layout(Document("", "", (Image(b""), Text(CLASSES[i % 8]))), np.random.default_rng(0))
        pixels = torch.full((1, 3, 2, 2), (i + shift) % 8, dtype=torch.uint8)
        made.append(make_sample(f"image-{i:02}", laid, pixels))
    made = [*made, bad_sample("bad", "broken", 2)]
    return [collate(made[i : i + size]) for i in range(0, len(made), size)]


def evaluation(kept: list[Any] | None) -> Classification:
    made = Classification()
    made.kept = kept
    return made


def test_the_head_is_chosen_on_what_was_held_out_of_training(tmp_path: Path) -> None:
    model = cast(Any, Pixels())
    result = evaluation(batches(list(range(8)), shift=-1)).measure(model, batches(list(range(10))), tmp_path)
    assert result is not None
    assert result["head"] == {
        "lr": 0.2, "weight_decay": 0.3, "chosen_by": "top-1 on 8 training images held out"
    }  # fmt: skip
    assert [head["top1"] for head in result["grid"]] == [0.0, 1.0]
    assert (result["top1"], result["images"], result["chance"]) == (0.0, 10, 0.2)  # the other one has 1.0
    found = read_outcomes(tmp_path, "classification")
    assert found is not None
    assert found.labels[:3], found.predicted[:3] == ([0, 1, 2], [1, 2, 3])
    note = Classification().note(result)
    assert note.endswith("with lr 0.2, weight decay 0.3, chosen by top-1 on 8 training images held out")


def test_a_grid_is_not_chosen_from_the_test_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chosen on data\.train\.hold_out; set it"):
        evaluation(None).measure(cast(Any, Pixels()), batches([1]), tmp_path)


def measure(rank: int, ranks: int, folder: Path) -> Any:
    if ranks > 1:
        as_launched(rank, ranks)
    mine = list(range(11))[rank::ranks]
    return evaluation(batches(mine)).measure(cast(Any, Pixels()), batches(mine, size=3), folder)


def test_two_ranks_measure_what_one_measures(tmp_path: Path) -> None:
    one = measure(0, 1, tmp_path / "one")
    assert one["top1"] == 1.0
    assert run_ranks(2, measure, tmp_path / "two") == [one, one]
    files = [(tmp_path / n / "outcomes/classification.json").read_text() for n in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize("share", [1e-9, 0.5])
def test_a_share_that_holds_nothing_is_said_before_training(tmp_path: Path, share: float) -> None:
    """Of eight documents; with one head nothing is chosen."""
    with DocumentWriter(tmp_path) as writer:
        for number in range(8):
            image = Image(picture(np.random.default_rng(number)))
            writer.write(Document(f"d{number}", "", (image, Text(CLASSES[number]))))
    stream = StreamConfig(local=str(tmp_path), num_workers=0, hold_out=share)
    options = {
        "layout": Labelled(CLASSES),
        "image_size": 16,
        "batch_size": 4,
        "seed": 1,
        "max_bad_fraction": 1.0,
    }
    kept, all_of_them = (
        build_loader(stream, train=False, held_out_only=only, pin_memory=False, **options).dataloader
        for only in (True, False)
    )
    made = evaluation(cast(Any, kept))
    made.check(all_of_them)
    made.start(cast(Any, SimpleNamespace(terms={"classification": None}, heads=[1, 2])))
    if share == 0.5:
        made.check(all_of_them)
        return
    with pytest.raises(
        DataError, match=r"data\.train\.hold_out: none of 8 documents is in that share; raise it"
    ):
        made.check(all_of_them)


def test_nothing_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = cast(Any, Pixels()), batches([1])
    assert evaluation(kept).measure(model, None, tmp_path) is None
    with pytest.raises(DataError, match=r"there is no test image; see data\.eval"):
        evaluation(kept).measure(model, batches([]), tmp_path)
    with pytest.raises(DataError, match=r"there is no test image; see data\.train\.hold_out"):
        evaluation(batches([])).measure(model, kept, tmp_path)
    nan = torch.full((2, 1, 8), torch.nan)
    monkeypatch.setattr(Pixels, "__call__", lambda *_: {"logits": nan, "labels": torch.zeros(1).long()})
    with pytest.raises(DataError, match="a logit is not finite"):
        evaluation(kept).measure(model, kept, tmp_path)
    with pytest.raises(ConfigError, match="the method Other classifies nothing"):
        Classification().start(cast(Any, type("Other", (), {"terms": {}})()))
