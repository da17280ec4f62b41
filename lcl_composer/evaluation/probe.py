"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from lcl_composer.errors import DataError
from lcl_composer.evaluation.features import FeatureKind, extract_features

#: L2 strengths tried, strongest first: each fit starts from the one before.
L2_GRID = tuple(10.0**exponent for exponent in (1, 0, -1, -2, -3, -4, -5))


@dataclass(frozen=True)
class ProbeResult:
    """Outcome of a linear probe.

    Attributes:
        accuracy: Share of validation images classified right, 0..1.
        l2: Chosen strength of the regularisation.
        chance: Share of the most frequent training class among the validation images.
    """

    accuracy: float
    l2: float
    chance: float


def fit_logistic(
    features: Tensor, labels: Tensor, classes: int, l2: float, start: Tensor | None = None
) -> Tensor:
    """Minimise mean cross-entropy + ``l2 / 2 * |W|^2`` with full-batch L-BFGS.

    Args:
        features: Standardised features [N, F].
        labels: Class indices [N].
        classes: Number of classes C.
        l2: Strength of the penalty; the bias is not penalised.
        start: Weights [F + 1, C] to start from; zeros if None.

    Returns:
        Weights [F + 1, C], the bias in the last row.
    """
    shape = (features.shape[1] + 1, classes)
    weights = (torch.zeros(shape, dtype=features.dtype) if start is None else start.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(features @ weights[:-1] + weights[-1], labels)
        loss = loss + l2 / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return weights.detach()


def accuracy(weights: Tensor, features: Tensor, labels: Tensor) -> float:
    """Share of rows of ``features`` [N, F] that ``weights`` [F + 1, C] put into their class."""
    predicted = (features @ weights[:-1] + weights[-1]).argmax(1)
    return float((predicted == labels).float().mean())


def _split(labels: Tensor, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Indices to fit and to choose on: the last fifth of each class after a fixed shuffle."""
    generator = torch.Generator().manual_seed(0)
    fit, choose = [], []
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held = int(len(rows) * share)
        fit.append(rows[held:])
        choose.append(rows[:held])
    return torch.cat(fit), torch.cat(choose)


def choose_l2(features: Tensor, labels: Tensor, classes: int) -> float:
    """The strength of :data:`L2_GRID` with the best accuracy on a held-out fifth of the training part.

    Ties go to the lower cross-entropy there. Where classes are too small to hold anything out (fewer than
    five images each), the middle of the grid is taken.
    """
    fit, choose = _split(labels)
    if len(choose) == 0:
        return L2_GRID[len(L2_GRID) // 2]
    best, best_score, weights = L2_GRID[0], (-1.0, 0.0), None
    for l2 in L2_GRID:
        weights = fit_logistic(features[fit], labels[fit], classes, l2, weights)
        logits = features[choose] @ weights[:-1] + weights[-1]
        entropy = float(nn.functional.cross_entropy(logits, labels[choose]))
        score = (accuracy(weights, features[choose], labels[choose]), -entropy)
        if score > best_score:
            best, best_score = l2, score
    return best


def linear_probe(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> ProbeResult:
    """Fit on ``train``, measure once on ``val``; the same input gives the same result.

    Features are standardised by the training part's mean and deviation; ``val`` has no say in the choice of
    the regularisation.

    Args:
        train: Features [N, F] and labels [N].
        val: Features [M, F] and labels [M].
    """
    x, y = train
    classes = int(y.max()) + 1
    mean, std = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(
        std > 1e-6 * std.max().clamp(min=1e-30), std, torch.inf
    )  # a constant feature says nothing
    x, x_val = (x - mean) / scale, (val[0] - mean) / scale
    l2 = choose_l2(x, y, classes)
    weights = fit_logistic(x, y, classes, l2)
    chance = float((val[1] == y.mode().values).float().mean())
    return ProbeResult(accuracy(weights, x_val, val[1]), l2, chance)


def check_same_classes(train: ImageFolder, val: ImageFolder) -> None:
    """Raise DataError if the two folders differ in their classes: their labels would not mean the same."""
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(
            f"{train.root} and {val.root} differ in the classes {', '.join(odd[:5])}; "
            "give both the same class folders"
        )


def probe_model(
    model: nn.Module,
    train: ImageFolder,
    val: ImageFolder,
    *,
    features: FeatureKind = "patch_mean",
    batch_size: int = 64,
) -> ProbeResult:
    """Linear probe of ``model``'s image side on two image folders.

    By default the features are the mean over the encoder's patch tokens, so that nothing but the encoder is
    measured. All ranks must call this together.

    Args:
        model: Has ``encode_images(pixel_values) -> (pooled [I, E], tokens [I, K, W])``.
        train: Images to fit on.
        val: Images to measure on.
        features: ``patch_mean`` or ``pooled``.
        batch_size: Images a forward.

    Raises:
        DataError: If the two folders differ in their classes.
    """
    check_same_classes(train, val)
    return linear_probe(
        extract_features(model, train, kind=features, batch_size=batch_size),
        extract_features(model, val, kind=features, batch_size=batch_size),
    )
