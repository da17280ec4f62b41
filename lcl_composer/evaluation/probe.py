"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lcl_composer.data import labelled
from lcl_composer.errors import DataError
from lcl_composer.evaluation.features import FeatureKind, LabelledImages, extract_features

#: Rows in memory at once while features are standardised, fitted and scored.
CHUNK = 1 << 16

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


@dataclass(frozen=True)
class Table:
    """Rows of features with their labels, standardised as they are read, a chunk in memory at a time.

    Attributes:
        features: [N, F], possibly a map of a file.
        labels: [N].
        mean: [F], taken off.
        scale: [F], divided by.
        rows: Numbers of the rows that belong to it; None: all.
    """

    features: Tensor
    labels: Tensor
    mean: Tensor | float = 0.0
    scale: Tensor | float = 1.0
    rows: Tensor | None = None

    def __len__(self) -> int:
        """How many rows belong to it."""
        return len(self.labels) if self.rows is None else len(self.rows)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield standardised features [n, F] and labels [n]."""
        for first in range(0, len(self), CHUNK):
            part = slice(first, first + CHUNK)
            taken = part if self.rows is None else self.rows[part]
            yield (self.features[taken] - self.mean) / self.scale, self.labels[taken]

    def standardised(self) -> Table:
        """The same rows by their own mean and deviation; a constant feature says nothing."""
        total = sum(x.double().sum(0) for x, _ in self.chunks())
        mean = torch.as_tensor(total) / len(self)
        squares = sum((x.double() - mean).square().sum(0) for x, _ in self.chunks())
        std = (torch.as_tensor(squares) / len(self)).sqrt()
        scale = torch.where(std > 1e-6 * std.max().clamp(min=1e-30), std, torch.inf)
        dtype = self.features.dtype
        return replace(self, mean=mean.to(dtype), scale=scale.to(dtype))


def fit_logistic(table: Table, classes: int, l2: float, start: Tensor | None = None) -> Tensor:
    """Minimise mean cross-entropy + ``l2 / 2 * |W|^2`` with full-batch L-BFGS, summed over chunks.

    Args:
        table: Standardised features.
        classes: Number of classes C.
        l2: Strength of the penalty; the bias is not penalised.
        start: Weights [F + 1, C] to start from; zeros if None.

    Returns:
        Weights [F + 1, C], the bias in the last row.
    """
    shape = (table.features.shape[1] + 1, classes)
    dtype = table.features.dtype
    weights = (torch.zeros(shape, dtype=dtype) if start is None else start.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = l2 / 2 * weights[:-1].square().sum()
        loss.backward()
        total = loss.detach()
        for x, y in table.chunks():
            logits = x @ weights[:-1] + weights[-1]
            part = nn.functional.cross_entropy(logits, y, reduction="sum") / len(table)
            part.backward()
            total = total + part.detach()
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return weights.detach()


def scores(weights: Tensor, table: Table) -> tuple[float, float]:
    """Share of a table's rows that ``weights`` [F + 1, C] put into their class, and the cross-entropy."""
    right, entropy = 0, 0.0
    for x, y in table.chunks():
        logits = x @ weights[:-1] + weights[-1]
        right += int((logits.argmax(1) == y).sum())
        entropy += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
    return right / len(table), entropy / len(table)


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


def choose_l2(table: Table, classes: int) -> float:
    """The strength of :data:`L2_GRID` with the best accuracy on a held-out fifth of the training part.

    Ties go to the lower cross-entropy there. Where classes are too small to hold anything out (fewer than
    five images each), the middle of the grid is taken.
    """
    fit, choose = (replace(table, rows=rows) for rows in _split(table.labels))
    if len(choose) == 0:
        return L2_GRID[len(L2_GRID) // 2]
    best, best_score, weights = L2_GRID[0], (-1.0, 0.0), None
    for l2 in L2_GRID:
        weights = fit_logistic(fit, classes, l2, weights)
        accuracy, entropy = scores(weights, choose)
        if (accuracy, -entropy) > best_score:
            best, best_score = l2, (accuracy, -entropy)
    return best


def linear_probe(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> ProbeResult:
    """Fit on ``train``, measure once on ``val``; the same input gives the same result.

    Features are standardised by the training part's mean and deviation; ``val`` has no say in the choice of
    the regularisation.

    Args:
        train: Features [N, F] and labels [N].
        val: Features [M, F] and labels [M].
    """
    table, labels = Table(*train).standardised(), train[1]
    classes = int(labels.max()) + 1
    l2 = choose_l2(table, classes)
    weights = fit_logistic(table, classes, l2)
    accuracy, _ = scores(weights, replace(table, features=val[0], labels=val[1]))
    chance = float((val[1] == labels.mode().values).float().mean())
    return ProbeResult(accuracy, l2, chance)


def check_same_classes(train: LabelledImages, val: LabelledImages) -> None:
    """Raise DataError if the two folders differ in their classes, or have one: labels would mean nothing."""
    if len(train.classes) < 2:
        raise DataError(f"{train.root}: {len(train.classes)} classes; a probe needs two at least")
    labelled.check_same_classes((str(train.root), train.classes), (str(val.root), val.classes))


def probe_model(
    model: nn.Module,
    train: LabelledImages,
    val: LabelledImages,
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
