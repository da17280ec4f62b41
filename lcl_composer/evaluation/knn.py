"""Weighted k-nearest-neighbour classification of frozen features: a measure that fits nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

#: Training features that queries are compared with at once.
_GALLERY = 1 << 15


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

    Neither is held in memory whole where it is a map of a file.

    Args:
        train: Features [N, F] and labels [N].
        queries: Features [M, F].
        k: Neighbours; all N where there are fewer.
        temperature: Above 0.
        chunk: Queries compared at once.

    Returns:
        Class indices [M].
    """
    classes, predicted = int(train[1].max()) + 1, []
    for rows in queries.split(chunk):
        cosine, labels = _nearest(train, normalize(rows.float(), dim=1), k)
        weights = ((cosine - 1) / temperature).exp()  # less 1: common to all votes, so exp cannot overflow
        votes = torch.zeros(len(rows), classes).scatter_add_(1, labels, weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def _nearest(train: tuple[Tensor, Tensor], queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines [M, k] and labels [M, k] of the nearest neighbours of normalised queries [M, F]."""
    cosine, labels = queries.new_zeros(len(queries), 0), train[1].new_zeros(len(queries), 0)
    for features, numbers in zip(train[0].split(_GALLERY), train[1].split(_GALLERY), strict=True):
        more = queries @ normalize(features.float(), dim=1).T
        cosine = torch.cat([cosine, more], 1)
        labels = torch.cat([labels, numbers.expand(len(queries), -1)], 1)
        cosine, places = cosine.topk(min(k, cosine.shape[1]), dim=1)
        labels = labels.gather(1, places)
    return cosine, labels


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
