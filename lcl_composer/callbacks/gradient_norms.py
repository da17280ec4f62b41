"""Norms of the gradients of each part of the model."""

from __future__ import annotations

import torch
from composer.core import Callback, Precision, State
from composer.loggers import Logger
from torch import Tensor

from lcl_composer.algorithms.schedule import in_batches
from lcl_composer.methods.method import Method, method_of
from lcl_composer.models.sharding import total_norm


class GradientNorms(Callback):
    """Log the L2 norm of the gradients: each part's, all together, and all together after clipping.

    ``gradient_norm/encoder`` and so on for each part of the method, ``.../heads`` and ``.../total`` are those
    of the global batch before any algorithm changes them; ``.../total_clipped`` is what the optimizer gets. A
    part without gradients (frozen) is left out.

    Composer runs algorithms before callbacks, so that at AFTER_TRAIN_BATCH gradients are clipped already. The
    norms are therefore taken after the backward of the last microbatch, and once more at AFTER_TRAIN_BATCH.

    Args:
        every: Composer time string in batches.

    Raises:
        ValueError: If ``every`` is not in batches.
    """

    def __init__(self, every: str = "10ba"):
        self.every = in_batches("every", every)
        self._documents_left = 0
        self._due = False

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Decide on this batch; called again when Composer repeats it with smaller microbatches."""
        self._due = (int(state.timestamp.batch) + 1) % self.every == 0
        self._documents_left = int(
            state.batch["totals"]["documents"]
        )  # of the whole batch, in a microbatch too

    def after_backward(self, state: State, logger: Logger) -> None:
        """Measure after the last microbatch, when DDP has summed over ranks."""
        self._documents_left -= len(state.batch["ids"])
        if not self._due or self._documents_left > 0:
            return
        scaled = state.precision == Precision.AMP_FP16 and state.scaler is not None
        scale = state.scaler.get_scale() if scaled and state.scaler else 1.0
        norms = {name: norm / scale for name, norm in part_norms(method_of(state)).items()}
        logger.log_metrics({f"gradient_norm/{name}": norm for name, norm in norms.items()})

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Measure what the algorithms have left."""
        if self._due:
            norms = part_norms(method_of(state))
            logger.log_metrics({"gradient_norm/total_clipped": norms["total"]})


def part_norms(model: Method) -> dict[str, float]:
    """L2 norm of the gradients of each part, of ``heads``, and of all as ``total``.

    All ranks must call it together where parameters are sharded.
    """
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(model.part_of(name), []).append(parameter.grad)
    norms = {part: total_norm(tensors) for part, tensors in gradients.items()}
    if not norms:
        return {"total": 0.0}
    stacked = torch.stack(list(norms.values()))
    values = torch.cat([stacked, torch.linalg.vector_norm(stacked)[None]]).tolist()  # the device waits once
    return dict(zip([*norms, "total"], values, strict=True))
