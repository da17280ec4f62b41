"""Wrong images are drawn by their likelihood, the same wherever they stand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lcl_composer.methods.hard_negatives import draw_hard_negatives

_WORD = 2**64


def seeds(count: int, start: int = 0) -> torch.Tensor:
    drawn = [np.random.default_rng([start, i]).integers(-(2**63), 2**63 - 1) for i in range(count)]
    return torch.tensor(np.array(drawn, dtype=np.int64))


def mix(key: int) -> int:
    """SplitMix64's finaliser as published, on unsigned numbers."""
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % _WORD
    return key ^ (key >> 31)


def plain_draw(logits: list[float], text: int, images: list[int], own: int, count: int) -> list[int]:
    """The draw of one text in Python's numbers, also for the tests of the method."""
    scores = []
    for logit, image in zip(logits, images, strict=True):
        bits = mix(mix(text % _WORD) ^ (image % _WORD)) >> 41
        scores.append(logit - math.log(-math.log((bits + 0.5) / 2**23)))
    order = sorted((i for i in range(len(images)) if i != own), key=lambda i: -scores[i])
    return order[:count]


def test_splitmix_is_the_published_one() -> None:
    """The first output of the generator from seed 0 mixes its increment."""
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("offset", [0, 3])
def test_it_is_the_draw_in_plain_numbers(offset: int) -> None:
    logits, images = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), seeds(9)
    texts = images[offset : offset + 4]
    found = draw_hard_negatives(logits, texts, images, offset, 3)
    for p, row in enumerate(found.tolist()):
        assert row == plain_draw(logits[p].tolist(), int(texts[p]), images.tolist(), offset + p, 3)


def test_places_have_no_say() -> None:
    logits, images = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), seeds(6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    found = draw_hard_negatives(logits, images, images, 0, 2)
    moved = draw_hard_negatives(logits[order][:, order], images[order], images[order], 0, 2)
    assert torch.equal(order[moved], found[order])


def test_likely_images_are_drawn_as_often_as_the_softmax_says() -> None:
    logits, images, count = torch.tensor([9.0, 1.0, 0.0, -1.0, 2.0]), seeds(5), 20_000
    texts = seeds(count, start=1)
    drawn = torch.cat([  # the own image is the first, however likely
        draw_hard_negatives(logits[None], text[None], images, 0, 1).flatten() for text in texts
    ])  # fmt: skip
    shares = torch.bincount(drawn, minlength=5) / count
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], logits[1:].softmax(0), atol=0.012, rtol=0)


def test_no_image_is_drawn_twice() -> None:
    images = seeds(5)
    found = draw_hard_negatives(torch.zeros(5, 5), images, images, 0, 4)
    for p, row in enumerate(found.tolist()):
        assert sorted([*row, p]) == list(range(5))
