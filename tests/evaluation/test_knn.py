from __future__ import annotations

import math

import pytest
import torch

from lcl_composer.evaluation.knn import knn_accuracy, knn_classify


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors [N, 2] at these angles, of different lengths: only the direction may count."""
    radians = torch.tensor(degrees) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]


def test_neighbours_are_those_of_the_angle() -> None:
    train = at(0, 10, 90, 100), torch.tensor([0, 0, 1, 1])
    assert knn_classify(train, at(5, 95, 40, 60), k=1).tolist() == [0, 1, 0, 1]


def test_one_close_neighbour_outweighs_two_far_ones() -> None:
    train = at(0, 60, 61), torch.tensor([1, 0, 0])
    query = at(10)
    assert knn_classify(train, query, k=3).tolist() == [1]
    # votes for class 1: exp(cos 10 / T); for class 0: exp(cos 50 / T) + exp(cos 51 / T)
    assert knn_classify(train, query, k=3, temperature=1.0).tolist() == [0]


def test_against_the_formula_in_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    x, queries = torch.randn(40, 6, generator=generator), torch.randn(17, 6, generator=generator)
    y = torch.randint(5, (40,), generator=generator)
    expected = []
    for q in queries.double():
        cosine = [float(q @ v / q.norm() / v.norm()) for v in x.double()]
        votes = [0.0] * 5
        for i in sorted(range(40), key=lambda i: -cosine[i])[:7]:
            votes[int(y[i])] += math.exp(cosine[i] / 0.07)
        expected.append(votes.index(max(votes)))
    assert knn_classify((x, y), queries, k=7, chunk=5).tolist() == expected


def test_accuracy_beside_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0] * 30 + [1] * 10)
    informative = torch.nn.functional.one_hot(labels, 4) + 0.1 * torch.randn(40, 4, generator=generator)
    result = knn_accuracy((informative, labels), (informative[20:], labels[20:]))
    assert (result.accuracy, result.chance) == (1.0, 0.5)
    noise, balanced = torch.randn(400, 4, generator=generator), torch.arange(400) % 2
    lucky = knn_accuracy((noise[:200], balanced[:200]), (noise[200:], balanced[200:])).accuracy
    assert abs(lucky - 0.5) < 0.15


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_collapsed_features_are_no_better_than_chance(value: float) -> None:
    labels = torch.arange(4).repeat(10)
    flat = torch.full((40, 3), value)
    assert knn_accuracy((flat, labels), (flat, labels)).accuracy == 0.25
