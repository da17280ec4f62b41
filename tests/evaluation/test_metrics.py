from __future__ import annotations

import pytest
import torch

from lcl_composer.evaluation.metrics import (
    chance_at_k,
    cosines,
    nearest_features,
    ranks_of_match,
    recall_at_k,
    retrieval_metrics,
)


def test_perfect_features_have_recall_one_whatever_their_length() -> None:
    images = torch.eye(7) * torch.arange(1, 8).unsqueeze(1)
    metrics = retrieval_metrics(images, torch.eye(7))
    assert metrics["image_to_text/recall@1"] == metrics["text_to_image/recall@1"] == 1.0
    assert metrics["candidates"] == 7


def test_the_two_directions_differ() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.9, 0.1]])  # both look most like gallery row 0
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert ranks_of_match(queries, gallery).tolist() == [0, 1]
    assert ranks_of_match(gallery, queries).tolist() == [0, 0]


def test_agrees_with_a_plain_sort_and_with_any_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(37, 5, generator=generator)
    contexts = images + 1.5 * torch.randn(37, 5, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(images[:, None], contexts[None], dim=2)
    order = cosine.argsort(1, descending=True)
    expected = (order == torch.arange(37)[:, None]).int().argmax(1)
    for chunk in (1, 10, 37, 1024):
        assert torch.equal(ranks_of_match(images, contexts, chunk=chunk), expected)


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan")])
def test_collapsed_features_score_zero_not_luck(value: float) -> None:
    collapsed = torch.full((600, 33), value)
    assert recall_at_k(collapsed, collapsed, (1, 10)) == {1: 0.0, 10: 0.0}


def test_a_tie_with_one_other_row_counts_against() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert ranks_of_match(images, images).tolist() == [1, 1, 0]


def test_chance() -> None:
    assert chance_at_k(200, 10) == 0.05
    assert chance_at_k(4, 10) == 1.0
    assert chance_at_k(0, 1) == 0.0
    generator = torch.Generator().manual_seed(1)
    random = recall_at_k(
        torch.randn(2000, 8, generator=generator), torch.randn(2000, 8, generator=generator), (100,)
    )
    assert random[100] == pytest.approx(chance_at_k(2000, 100), abs=0.015)


def test_no_images_and_unequal_shapes() -> None:
    assert recall_at_k(torch.empty(0, 3), torch.empty(0, 3)) == {1: 0.0, 5: 0.0, 10: 0.0}
    with pytest.raises(ValueError, match="differ in shape"):
        recall_at_k(torch.ones(2, 3), torch.ones(3, 3))


def test_of_several_features_the_nearest_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    images, contexts = torch.randn(9, 3, 5, generator=generator), torch.randn(9, 5, generator=generator)
    every = torch.nn.functional.cosine_similarity(images[:, :, None], contexts, dim=3)  # image, feature, text
    torch.testing.assert_close(cosines(images, contexts), every.amax(1))
    torch.testing.assert_close(cosines(contexts, images), every.amax(1).T)
    nearest = nearest_features(images, contexts)
    own = torch.nn.functional.cosine_similarity(nearest, contexts, dim=1)
    torch.testing.assert_close(own, every.amax(1).diagonal())
    assert torch.equal(nearest_features(contexts, contexts), contexts)
    expected = [int((row >= row[i]).sum()) - 1 for i, row in enumerate(every.amax(1))]
    assert ranks_of_match(images, contexts, chunk=4).tolist() == expected
