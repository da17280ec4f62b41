"""Weighted k-nearest-neighbour classification of frozen features: a measure that fits nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


@dataclass(frozen=True)
class KNNResult:
    """Outcome of a k-NN classification.

    Attributes:
        accuracy: Share of validation images classified right, 0..1.
        chance: Share of the most frequent training class among the validation images.
    """

    accuracy: float
    chance: float


def knn_classify(
    train: tuple[Tensor, Tensor],
    queries: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Classes of ``queries`` by the votes of their nearest training features.

    A neighbour votes for its class with weight ``exp(cosine / temperature)``: Wu et al., "Unsupervised
    feature learning via non-parametric instance discrimination", CVPR 2018, section 3.4; the settings are
    DINO's (arXiv 2104.14294, k = 20).

    Args:
        train: Features [N, F] and labels [N].
        queries: Features [M, F].
        k: Neighbours; all N where there are fewer.
        temperature: Above 0.
        chunk: Queries compared at once; bounds the memory at ``chunk * N`` floats.

    Returns:
        Class indices [M].
    """
    gallery, labels = normalize(train[0].float(), dim=1), train[1]
    classes, predicted = int(labels.max()) + 1, []
    for rows in normalize(queries.float(), dim=1).split(chunk):
        cosine, nearest = (rows @ gallery.T).topk(min(k, len(gallery)), dim=1)
        weights = ((cosine - 1) / temperature).exp()  # less 1: common to all votes, so exp cannot overflow
        votes = (weights.unsqueeze(2) * one_hot(labels[nearest], classes)).sum(1)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def knn_accuracy(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], *, k: int = 20, temperature: float = 0.07
) -> KNNResult:
    """Classify ``val`` by its neighbours in ``train``; arguments as :func:`knn_classify`."""
    predicted = knn_classify(train, val[0], k=k, temperature=temperature)
    most_frequent = train[1].mode().values
    return KNNResult(
        accuracy=float((predicted == val[1]).float().mean()),
        chance=float((val[1] == most_frequent).float().mean()),
    )
