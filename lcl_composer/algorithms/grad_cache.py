"""GradCache: the contrastive loss of the whole batch under microbatching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from composer.core import Algorithm, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.trainer.trainer import OOM_FOUND_ON_OTHER_RANK
from composer.utils import dist
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import split_batch
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.methods.contrast import Contrast
from lcl_composer.methods.method import Method, contrast_of, method_of
from lcl_composer.models.sharding import local

#: State of torch's generators: the CPU's, and the device's if it has one.
_Random = tuple[Tensor, Tensor | None]


class GradCache(Algorithm):
    """Contrasts over the whole global batch, however small the microbatches.

    GradCache (arXiv 2101.06983): the features of all microbatches are computed without a graph, the contrast
    of the whole batch over all ranks is differentiated with respect to them, and each microbatch then sends
    its features' gradient back, with the same dropout. The gradient is that of the undivided batch, to
    rounding, through both sides; the price is one more forward of everything but the vocabulary. The losses
    logged are those of the undivided batch too.

    Nothing happens where the batch is one microbatch or the contrastive weight is 0. It works with
    ``device_train_microbatch_size: auto``: each attempt caches anew. Layers that count what they see in train
    mode, such as BatchNorm, see every batch twice.
    """

    def __init__(self) -> None:
        self._batch: PackedBatch | None = None
        self._pieces: list[_Piece] = []

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts nothing."""
        contrast_of(model, "algorithms.grad_cache")

    def match(self, event: Event, state: State) -> bool:
        """At construction, around each batch and before each microbatch's forward."""
        return event in (
            Event.INIT,
            Event.BATCH_START,
            Event.BEFORE_TRAIN_BATCH,
            Event.BEFORE_FORWARD,
            Event.AFTER_TRAIN_BATCH,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Cache at the start of an attempt, hand out before each forward, clear at the end."""
        model = method_of(state)
        term, contrast = contrast_of(model, "algorithms.grad_cache")
        if event == Event.BATCH_START:
            self._batch = state.batch
        elif event == Event.BEFORE_TRAIN_BATCH:
            assert self._batch is not None, "BATCH_START comes first"
            contrast.override = None  # left behind if an attempt ran out of memory
            # The batch itself, not state.batch: that is a microbatch after such an attempt.
            split = state.dataloader.split if isinstance(state.dataloader, DocumentLoader) else split_batch
            microbatches = split(self._batch, state.device_train_microbatch_size or len(self._batch["ids"]))
            wanted = len(microbatches) > 1 and term.weight
            self._pieces = _cache(state, model, microbatches) if wanted else []
        elif event == Event.BEFORE_FORWARD and self._pieces:
            piece = self._pieces.pop(0)
            _set_random(state, piece.random)
            contrast.override = piece.share
        elif event == Event.AFTER_TRAIN_BATCH:
            contrast.override, self._batch = None, None


@dataclass(frozen=True)
class _Piece:
    """What one microbatch needs: its features' gradients, its part of the loss, and how its dropout fell."""

    contrast: Contrast
    random: _Random
    grad_features: list[Tensor]  # of each side, as the features
    grad_scalars: list[Tensor]
    value: Tensor

    def share(self, images: Tensor, contexts: Tensor, total: Tensor) -> Tensor:
        """Stands for the contrast: has the loss's value and passes on the cached gradients."""
        sides = zip((images, contexts), self.grad_features, strict=True)
        inner = torch.stack([(features.float() * grad).sum() for features, grad in sides]).sum()
        for scalar, grad in zip(self.contrast.scalars, self.grad_scalars, strict=True):
            inner = inner + local(scalar) * grad
        return inner - inner.detach() + self.value


def _cache(state: State, model: Method, microbatches: list[PackedBatch]) -> list[_Piece]:
    """Features of all microbatches, the contrast over all ranks, its gradients by microbatch."""
    term, contrast = contrast_of(model, "algorithms.grad_cache")
    randoms: list[_Random] = []
    parts: list[list[Tensor]] = []  # of each microbatch, the two sides
    with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
        for microbatch in microbatches:
            randoms.append(_get_random(state))
            outputs = model(state.device.batch_to_device(microbatch))
            parts.append(term.read(outputs))
    if state.auto_microbatching:
        _stop_if_another_rank_ran_out_of_memory(state)
    # float32 leaves: the gradients of half-precision features would be rounded twice, or vanish in fp16.
    sides = [torch.cat(side).float().requires_grad_() for side in zip(*parts, strict=True)]
    total = model.global_totals(state.device.batch_to_device(microbatches[0]))[term.count]
    with torch.enable_grad(), get_precision_context(state.precision, state.precision_config):
        loss = contrast.share(sides[0], sides[1], total)
    grads = torch.autograd.grad(loss, [*sides, *contrast.scalars])
    split = [grad.split([len(part[0]) for part in parts]) for grad in grads[:2]]
    count = len(microbatches)
    return [
        _Piece(
            contrast,
            random,
            [side[i] for side in split],
            [local(grad) / count for grad in grads[2:]],
            loss.detach() / count,
        )
        for i, random in enumerate(randoms)
    ]


def _get_random(state: State) -> _Random:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if state.device.name == "gpu" else None


def _set_random(state: State, random: _Random) -> None:
    torch.set_rng_state(random[0])
    if random[1] is not None:
        torch.cuda.set_rng_state(random[1])


def _stop_if_another_rank_ran_out_of_memory(state: State) -> None:
    """Composer's own exchange after a forward: a rank that ran out of memory waits for it in its handler."""
    found = state.device.tensor_to_device(torch.tensor([0], dtype=torch.uint8))
    dist.all_reduce(found, reduce_operation="MAX")
    finished = state.device.tensor_to_device(torch.tensor([0], dtype=torch.uint8))
    dist.all_reduce(finished, reduce_operation="MIN")
    if found.item() == 1:
        raise RuntimeError(OOM_FOUND_ON_OTHER_RANK)
