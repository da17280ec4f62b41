"""TR@k and IR@k by hand: ties, 4 or 7 captions an image, empty and duplicate captions, one image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.tokenizer import train_bpe
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.caption_retrieval import (
    CaptionedImages,
    CaptionRetrieval,
    captions_of,
    chances,
    outcomes_of,
)
from lcl_composer.evaluation.metrics import TIE, caption_ranks
from lcl_composer.evaluation.outcomes import read_outcomes
from lcl_composer.methods.emu import Emu
from lcl_composer.registry import evaluations, tokenizers
from tests.distributed import run_ranks
from tests.evaluation.held_out import loader_of
from tests.models.tiny import IMAGE_SIZE, RULES, TOKENIZER, tiny_method, tiny_model
from tests.runs import picture


def plain_ranks(images: Tensor, captions: Tensor, owners: list[int]) -> tuple[list[int], list[int]]:
    """Counted one by one."""
    cosine = (normalize(images, dim=1) @ normalize(captions, dim=1).T).tolist()
    of_images, of_captions = [], []
    for i, row in enumerate(cosine):
        best = max(c for c, owner in zip(row, owners, strict=True) if owner == i)
        of_images.append(sum(c > best - TIE for c, owner in zip(row, owners, strict=True) if owner != i))
    for j, owner in enumerate(owners):
        own = cosine[owner][j]
        of_captions.append(sum(cosine[i][j] > own - TIE for i in range(len(cosine)) if i != owner))
    return of_images, of_captions


def test_ranks_are_those_counted_one_by_one() -> None:
    """4 to 7 captions an image, features of few values so that many tie."""
    generator = torch.Generator().manual_seed(0)
    owners = [i for i in range(9) for _ in range(4 + i % 4)]
    images = torch.randint(-2, 3, (9, 3), generator=generator).float() + 0.1
    captions = torch.randint(-2, 3, (len(owners), 3), generator=generator).float() + 0.1
    found = caption_ranks(images, captions, torch.tensor(owners), chunk=4)
    assert [ranks.tolist() for ranks in found] == list(plain_ranks(images, captions, owners))


def test_a_case_by_hand() -> None:
    """Two images; the second's captions lie nearer to the first than one of its own."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    captions = torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, 0.1], [0.2, 1.0]])
    owners = torch.tensor([0, 0, 1, 1])
    of_images, of_captions = caption_ranks(images, captions, owners)
    assert of_images.tolist() == [1, 1]  # the third is nearer to 0 than the first; the second nearest to 1
    assert of_captions.tolist() == [0, 1, 1, 0]
    found = outcomes_of(CaptionedImages(["a", "b"], images, captions, owners), of_images, of_captions)
    values = {name: tally.value for name, tally in found.tallies.items()}
    assert (values["image_to_text/recall@1"], values["text_to_image/recall@1"]) == (0.0, 0.5)
    assert (values["image_to_text/recall@5"], values["text_to_image/recall@5"]) == (1.0, 1.0)


def test_duplicate_captions_collapse_and_nan_count_against_us() -> None:
    images = torch.eye(3)
    same = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])  # image 1 has the words of image 0
    of_images, of_captions = caption_ranks(images, same, torch.arange(3))
    assert of_images.tolist() == [1, 2, 0]
    assert of_captions.tolist() == [0, 2, 0]
    collapsed = caption_ranks(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3))
    assert [ranks.tolist() for ranks in collapsed] == [[2, 2, 2], [2, 2, 2]]
    lost = caption_ranks(images, torch.full((4, 3), torch.nan), torch.tensor([0, 0, 1, 2]))
    assert [ranks.tolist() for ranks in lost] == [[2, 3, 3], [2, 2, 2, 2]]


def test_one_image_is_always_found_and_one_without_captions_is_an_error() -> None:
    found = caption_ranks(torch.ones(1, 2), torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))
    assert [ranks.tolist() for ranks in found] == [[0], [0] * 5]
    with pytest.raises(ValueError, match="2 images, 1 of which have captions"):
        caption_ranks(torch.ones(2, 2), torch.ones(1, 2), torch.tensor([1]))


def test_an_image_of_several_features_counts_by_the_nearest() -> None:
    images = torch.stack([torch.eye(2), -torch.eye(2)])
    captions = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    found = caption_ranks(images, captions, torch.tensor([0, 1]))
    assert [ranks.tolist() for ranks in found] == [[0, 0], [0, 0]]


def test_chance_is_that_of_random_orders() -> None:
    counts = [2, 5, 1, 3] * 3
    owners = np.repeat(np.arange(12), counts)
    rng, hits = np.random.default_rng(0), {1: 0, 5: 0, 10: 0}
    for _ in range(3000):
        order = owners[rng.permutation(len(owners))]
        for k in hits:
            hits[k] += len(set(order[:k].tolist())) / 12
    found = chances(counts)
    for k, count in hits.items():
        assert found[f"chance/image_to_text/recall@{k}"] == pytest.approx(count / 3000, abs=0.01)
        assert found[f"chance/text_to_image/recall@{k}"] == k / 12
    assert set(chances([4]).values()) == {1.0}


class Stream:
    """Held-out documents as they were written."""

    def __init__(self, documents: list[Document]):
        self.documents, self.num_samples = documents, len(documents)

    def document(self, index: int) -> Document:
        return self.documents[index]


def documents() -> list[Document]:
    """Four images with 1, 7, 4 and no captions that have tokens, and one that cannot be read."""
    rng = np.random.default_rng(0)
    made = [["5"], [str(i) for i in range(1, 8)], ["8 9", "", "10", "11", "8 9"], ["", " "], ["12"]]
    bad = Image(b"no picture")
    return [
        Document(f"d{n}", "", (bad if n == 4 else Image(picture(rng)), *map(Text, texts)))
        for n, texts in enumerate(made)
    ]


def evaluation_of(**options: Any) -> CaptionRetrieval:
    offered = {
        "image_size": IMAGE_SIZE,
        "layout": tiny_model().layout(TOKENIZER, RULES),
        "tokenizer": TOKENIZER,
    }
    return evaluations.build({"name": "caption_retrieval", **options}, **offered)


def measure(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    model = tiny_model().requires_grad_(False)
    loader: Any = SimpleNamespace(dataset=Stream(documents()))
    result = evaluation_of(batch_size=2).measure(model, loader, folder)
    assert result is not None
    assert model.training
    return result


def test_every_caption_takes_part_and_what_does_not_is_counted(tmp_path: Path) -> None:
    result = measure(0, 1, tmp_path)
    assert (result["images"], result["captions"]) == (3, 1 + 5 + 4)
    assert result["skipped"] == {
        "images without a caption": 1,
        "images that cannot be read": 1,
        "documents that are not one image with captions": 0,
    }
    assert result["image_to_text/recall@10"] == result["text_to_image/recall@5"] == 1.0
    outcomes = read_outcomes(tmp_path, "caption_retrieval")
    assert outcomes is not None
    assert list(outcomes.images) == ["d0", "d1", "d2"]
    for name, tally in outcomes.tallies.items():
        assert tally.value == pytest.approx(result[name])
    assert outcomes.tallies["text_to_image/recall@1"].counts == [1, 5, 4]
    assert (tmp_path / "gallery.json").is_file()
    evaluation = evaluation_of()
    assert evaluation.rows(result)[0].measured == "Image to text TR@1"
    assert evaluation.note(result) == (
        "TR, IR: 3 images with 10 captions; left out: 1 images without a caption, "
        "1 images that cannot be read"
    )


def test_all_captions_or_few_images_where_that_is_asked_for(tmp_path: Path) -> None:
    loader: Any = SimpleNamespace(dataset=Stream(documents()))
    model = tiny_model().requires_grad_(False)
    every = evaluation_of(max_captions=None).measure(model, loader, tmp_path)
    few = evaluation_of(max_images=2).measure(model, loader, tmp_path)
    assert every is not None
    assert few is not None
    assert (every["captions"], few["images"], few["captions"]) == (12, 2, 6)
    with pytest.raises(ConfigError, match="must be at least 1"):
        evaluation_of(max_captions=0)


def test_a_blank_caption_is_none_even_of_tokens(tmp_path: Path) -> None:
    train_bpe(["a cat"], 300, tmp_path / "tokenizer.json")
    tokenizer = tokenizers.build({"name": "bpe", "path": str(tmp_path / "tokenizer.json")})
    assert tokenizer.encode("  ")
    document = Document("d", "", (Image(b""), Text("  "), Text("a cat"), Text("")))
    assert captions_of(document, tokenizer, None) == ["a cat"]


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.caption_retrieval: the method Emu contrasts nothing"):
        evaluation_of().start(tiny_method(Emu))
    loader: Any = SimpleNamespace(dataset=Stream(documents()[3:]))
    with pytest.raises(DataError, match="no image with a caption"):
        evaluation_of().measure(tiny_model().requires_grad_(False), loader, tmp_path)
    two = Document("two", "", (Image(b""), Image(b""), Text("3")))
    loader = SimpleNamespace(dataset=Stream([two, *documents()[:1]]))
    result = evaluation_of().measure(tiny_model().requires_grad_(False), loader, tmp_path)
    assert result is not None
    assert evaluation_of().note(result).endswith("left out: 1 documents that are not one image with captions")
    assert evaluation_of().measure(tiny_model(), None, tmp_path) is None


def test_data_that_cannot_be_measured_are_said_before_training(tmp_path: Path) -> None:
    """Documents of two images, captions without a token, images that cannot be read; the first is said."""
    two = Document("two", "", (Image(b""), Image(b""), Text("3")))
    for number, (wrong, message) in enumerate(
        [
            (two, "'two': 2 images, not one"),
            (documents()[3], "'d3': no caption"),
            (documents()[4], "'d4', image 0"),
        ]
    ):
        with DocumentWriter(tmp_path / str(number)) as writer:
            writer.write(wrong)
        loader = loader_of(tmp_path / str(number), tiny_model().layout(TOKENIZER, RULES), 1)
        with pytest.raises(
            DataError, match=rf"caption_retrieval: none of 1 documents .*the first: .*{message}"
        ):
            evaluation_of().check(loader)
    with DocumentWriter(tmp_path / "good") as writer:
        for document in (two, documents()[1]):
            writer.write(document)
    evaluation_of().check(loader_of(tmp_path / "good", tiny_model().layout(TOKENIZER, RULES), 1))


@pytest.mark.slow
def test_two_ranks_measure_and_show_what_one_does(tmp_path: Path) -> None:
    expected = measure(0, 1, tmp_path / "one")
    for found in run_ranks(2, measure, tmp_path / "two"):
        assert found.pop("skipped") == expected["skipped"]
        assert found == pytest.approx({k: v for k, v in expected.items() if k != "skipped"})
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two"))
    assert one == two
