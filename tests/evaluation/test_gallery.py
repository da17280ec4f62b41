from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from lcl_composer.data.batch import PackedBatch
from lcl_composer.evaluation.gallery import CONTEXT_TOKENS, IMAGE_MARK, Gallery, readable, search, thumbnail
from lcl_composer.evaluation.metrics import ranks_of_match
from lcl_composer.evaluation.retrieval import PairedFeatures, anchored_keys, collect_features
from tests.evaluation.batches import make_batch
from tests.evaluation.fakes import FakeLCL, Words


def written(folder: Path, model: FakeLCL, batches: list[PackedBatch], queries: int = 4) -> dict:
    gallery = Gallery(Words(), queries=queries)
    with torch.no_grad():
        features = collect_features(model.eval(), gallery.watch(batches), None)
    gallery.write(features, folder)
    return json.loads((folder / "gallery.json").read_text())


def test_texts_and_pictures_are_those_of_their_items(tmp_path: Path) -> None:
    batch = make_batch(12)
    page = written(tmp_path, FakeLCL(), [batch])
    assert page["candidates"] == 12
    colours = dict(zip(batch["ids"], batch["tokens"].view(12, 4)[:, 1].tolist(), strict=True))
    for item in page["items"].values():
        colour = colours[item["document"]]
        assert item["text"] == f"9 {colour}"
        pixel = Image.open(tmp_path / item["file"]).resize((1, 1)).getpixel((0, 0))
        assert isinstance(pixel, tuple)
        assert [int(value > 100) for value in pixel] == [colour // 4 % 2, colour // 2 % 2, colour % 2]


def test_every_item_that_is_named_is_written_and_no_other(tmp_path: Path) -> None:
    page = written(tmp_path, FakeLCL(), [make_batch(6, seed) for seed in range(5)], queries=2)
    found = page["text_to_image"] + page["image_to_text"]
    named = {str(i) for query in found for i in (query["item"], *(item for item, _ in query["found"]))}
    assert set(page["items"]) == named
    assert len(list((tmp_path / "gallery").iterdir())) == len(named) < 30
    assert [len(query["found"]) for query in found] == [5] * 4


def test_the_order_of_the_documents_does_not_matter(tmp_path: Path) -> None:
    model, batches = FakeLCL(), [make_batch(6, seed) for seed in range(4)]
    there = written(tmp_path / "a", model, batches)
    back = written(tmp_path / "b", model, batches[::-1])
    assert there == back


def test_ranks_agree_with_recall_and_the_nearest_come_first() -> None:
    torch.manual_seed(0)
    queries, gallery = torch.randn(40, 8), torch.randn(40, 8)
    results = search(queries, gallery, list(range(40)), top=5)
    ranks = (ranks_of_match(queries, gallery) + 1).tolist()
    assert [result["rank"] for result in results] == ranks
    for row, result in enumerate(results):
        cosines = [cosine for _, cosine in result["found"]]
        assert cosines == sorted(cosines, reverse=True)
        found = [item for item, _ in result["found"]]
        assert (found.index(row) + 1 if row in found else None) == (ranks[row] if ranks[row] <= 5 else None)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_collapsed_features_find_nothing(value: float) -> None:
    same = torch.full((9, 4), value)
    for result in search(same, same, [0, 4], top=5):
        assert result["rank"] == 9
        assert result["item"] not in [item for item, _ in result["found"]]
        json.dumps(result, allow_nan=False)


def test_few_candidates_are_each_a_query_and_none_is_none(tmp_path: Path) -> None:
    page = written(tmp_path, FakeLCL(), [make_batch(3)], queries=8)
    assert [query["item"] for query in page["text_to_image"]] == [0, 1, 2]
    Gallery(Words()).write(PairedFeatures([], torch.empty(0, 1), torch.empty(0, 1)), tmp_path / "none")
    assert json.loads((tmp_path / "none/gallery.json").read_text())["items"] == {}


def test_a_text_starts_with_its_document_and_marks_images() -> None:
    words = Words()
    assert readable([11, 1, 2, 10, 13, 13, 14, 3], words) == f"1 2 {IMAGE_MARK} 3"
    batch = make_batch(2)
    batch["tokens"] = torch.cat([batch["tokens"][:4], torch.arange(3).repeat(100), torch.tensor([10, 1])])
    batch["cu_seqlens"] = torch.tensor([0, 4, 306], dtype=torch.int32)
    batch["anchors"] = torch.tensor([2, 304])
    gallery = Gallery(words)
    watched: Iterator[PackedBatch] = gallery.watch([batch])
    assert next(watched) is batch
    first, second = anchored_keys(batch)
    assert gallery.cards[first].context == batch["tokens"][:2].tolist()
    assert len(gallery.cards[second].context) == CONTEXT_TOKENS


def test_thumbnails_shrink_and_stretch_normalised_pixels() -> None:
    assert thumbnail(torch.zeros(3, 448, 224, dtype=torch.uint8)).shape == (112, 56, 3)
    shown = thumbnail(torch.linspace(-2, 2, 3 * 16 * 16).view(3, 16, 16))
    assert (shown.min(), shown.max()) == (0, 255)
