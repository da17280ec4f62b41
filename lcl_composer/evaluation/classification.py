"""Top-1, top-5 and accuracy a class of a trained classifier on held-out images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.evaluation import Evaluation, Row
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.outcomes import Outcomes, Tally, write_outcomes
from lcl_composer.evaluation.quiet import device_of
from lcl_composer.evaluation.retrieval import to_device
from lcl_composer.evaluation.trial import check_documents, stream_of

if TYPE_CHECKING:
    from lcl_composer.methods.method import Method

_TOP = 5


@dataclass(frozen=True)
class Ranked:
    """What G heads made of N images.

    Attributes:
        ids: Names of the documents, N.
        labels: Right classes [N] int64.
        ranks: Place of the right class in the order of each head, [G, N]; 0 is the first.
        predicted: First class in that order, [G, N].
    """

    ids: list[str]
    labels: Tensor
    ranks: Tensor
    predicted: Tensor


def rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Place of the right class when classes are ordered by logit, the lower number first among equals.

    Args:
        logits: [G, I, C].
        labels: [I].

    Returns:
        [G, I] int64; 0 where the right class is the first.
    """
    right_GI1 = logits.gather(2, labels.expand(len(logits), -1)[..., None])
    earlier_IC = torch.arange(logits.shape[2], device=logits.device) < labels[:, None]
    return ((logits > right_GI1) | ((logits == right_GI1) & earlier_IC)).sum(2)


def rank_images(model: Method, batches: Iterable[PackedBatch], whose: str = "data.eval") -> Ranked:
    """Classify every image of the batches; all ranks call it together and get the whole, sorted by id.

    Raises:
        DataError: If there is no image, or a logit is not finite.
    """
    ids: list[str] = []
    labels, ranks, predicted, finite = [], [], [], True
    for batch in batches:
        outputs = model(to_device(batch, device_of(model)))
        logits_GIC = outputs["logits"].float()
        finite = finite and bool(logits_GIC.isfinite().all())
        ids += [name for name, length in zip(batch["ids"], batch["lengths"], strict=True) if length]
        labels.append(outputs["labels"].cpu())
        ranks.append(rank_of_label(logits_GIC, outputs["labels"]).cpu())
        predicted.append(rank_first(logits_GIC).cpu())
    mine = (ids, torch.cat(labels), torch.cat(ranks, 1), torch.cat(predicted, 1)) if ids else None
    gathered = gather_objects((mine, finite))
    if not all(is_finite for _, is_finite in gathered):
        raise DataError(
            "evaluation.classification: a logit is not finite; lower optimizer.lr, or the largest of "
            "method.grid.lr, and train anew"
        )
    parts = [part for part, _ in gathered if part is not None]
    if not parts:
        raise DataError(f"evaluation.classification: there is no test image; see {whose}")
    names = [name for part in parts for name in part[0]]
    order = sorted(range(len(names)), key=names.__getitem__)
    return Ranked(
        [names[i] for i in order],
        torch.cat([part[1] for part in parts])[order],
        torch.cat([part[2] for part in parts], 1)[:, order],
        torch.cat([part[3] for part in parts], 1)[:, order],
    )


def rank_first(logits: Tensor) -> Tensor:
    """The class with the highest logit, [G, I] of [G, I, C]; the lowest number among equals."""
    highest = logits == logits.amax(2, keepdim=True)
    return (
        highest.int().argmax(2) if logits.shape[1] else logits.new_zeros(logits.shape[:2], dtype=torch.long)
    )


def accuracies(ranks: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """Top-1, top-5, and accuracy a class.

    Args:
        ranks: Place of the right class of each image, [N].
        labels: Right classes [N].
        classes: How many there are.

    Returns:
        ``top1``, ``top5``, ``mean_per_class`` over the classes that have an image, and ``per_class``, a list
        with None where a class has none; all 0..1.
    """
    right = (ranks == 0).double()
    count = torch.bincount(labels, minlength=classes)
    hits = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, right)
    per_class = [hit / n if n else None for hit, n in zip(hits.tolist(), count.tolist(), strict=True)]
    measured = [share for share in per_class if share is not None]
    return {
        "top1": float(right.mean()),
        "top5": float((ranks < _TOP).double().mean()),
        "mean_per_class": sum(measured) / len(measured),
        "per_class": per_class,
    }


class Classification(Evaluation):
    """Top-1, top-5 and accuracy a class of ``method: {name: classify}`` on ``data.eval``.

    Of a grid one head is measured: the one with the best top-1 on the documents that ``data.train.hold_out``
    keeps from training (among equals the first of the grid). What each image was taken for goes to
    ``outcomes/classification.json``.
    """

    _chooses = False

    def start(self, model: Method) -> None:
        """Raise ConfigError if the method classifies nothing."""
        if "classification" not in model.terms:
            raise ConfigError(
                f"evaluation.classification: the method {type(model).__name__} classifies nothing; remove it"
            )
        self._chooses = bool(getattr(model, "heads", ()))

    def check(self, held_out: Iterable[PackedBatch]) -> None:
        """Raise DataError if there is no test image, or none to choose a grid's head by."""
        check_documents(held_out, "classification")
        kept = stream_of(self.kept) if self._chooses else None
        if kept is not None and not kept.keeps_any():
            raise DataError(
                f"data.train.hold_out: none of {kept.num_samples:,} documents is in that share; raise it"
            )

    def measure(
        self, model: Method, held_out: Iterable[PackedBatch] | None, folder: Path
    ) -> dict[str, Any] | None:
        """Accuracies 0..1, chance, and which head was measured; None without data."""
        if held_out is None:
            return None
        classifier: Any = model
        head, chosen = self._choose(classifier)
        found = rank_images(model, held_out)
        names = list(classifier.classes)
        measured = accuracies(found.ranks[head], found.labels, len(names))
        if world()[0] == 0:
            _write(found, head, names, folder)
        most_frequent = int(torch.bincount(found.labels).max())
        return {
            **measured,
            "per_class": dict(zip(names, measured["per_class"], strict=True)),
            "chance": most_frequent / len(found.ids),
            "images": len(found.ids),
            "classes": len(names),
            **chosen,
        }

    def _choose(self, model: Any) -> tuple[int, dict[str, Any]]:
        """The number of the head to measure, and how it was found."""
        if not model.heads:
            return 0, {}
        if self.kept is None:
            raise ConfigError(
                "evaluation.classification: a grid's head is chosen on data.train.hold_out; set it"
            )
        found = rank_images(model, self.kept, "data.train.hold_out")
        top1 = (found.ranks == 0).double().mean(1)
        best = int(top1.argmax())
        grid = [{**head._asdict(), "top1": float(of)} for head, of in zip(model.heads, top1, strict=True)]
        by = f"top-1 on {len(found.ids)} training images held out"
        return best, {"head": {**model.heads[best]._asdict(), "chosen_by": by}, "grid": grid}

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """Top-1 and top-5."""
        rows = [Row("Top-1 accuracy", f"{result['chance']:.1%} by chance", f"{result['top1']:.1%}", "")]
        if result["classes"] > _TOP:
            rows.append(Row("Top-5 accuracy", "", f"{result['top5']:.1%}", ""))
        return rows

    def note(self, result: dict[str, Any]) -> str:
        """The images, and the head of a grid."""
        said = f"Classification: {result['images']:,} images of {result['classes']} classes"
        if head := result.get("head"):
            said += (
                f"; of {len(result['grid'])} heads that with lr {head['lr']:g}, weight decay "
                f"{head['weight_decay']:g}, chosen by {head['chosen_by']}"
            )
        return said


def _write(found: Ranked, head: int, classes: list[str], folder: Path) -> None:
    ranks = found.ranks[head]
    tallies = {"top1": Tally((ranks == 0).tolist()), "top5": Tally((ranks < _TOP).tolist())}
    labels, predicted = found.labels.tolist(), found.predicted[head].tolist()
    write_outcomes(Outcomes(found.ids, tallies, classes, labels, predicted), folder, "classification")
