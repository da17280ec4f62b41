"""GradCache: the contrastive loss of the whole batch under microbatching."""

from __future__ import annotations

import torch
from composer.core import Algorithm, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.trainer.trainer import OOM_FOUND_ON_OTHER_RANK
from composer.utils import dist
from torch import Tensor

from lcl_composer.callbacks.unwrap import lcl_model
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import split_batch
from lcl_composer.models.lcl import LCLModel

#: State of torch's generators: the CPU's, and the device's if it has one.
_Random = tuple[Tensor, Tensor | None]


class GradCache(Algorithm):
    """Sets every image of the global batch against every context, however small the microbatches.

    GradCache (arXiv 2101.06983): the features of all microbatches are computed without a graph, L_con of
    the whole batch over all ranks is differentiated with respect to them, and each microbatch then sends its
    features' gradient back, with the same dropout. The gradient is that of the undivided batch, to rounding,
    through the encoder and the language model both; the price is one more forward of everything but the
    vocabulary. The losses logged are those of the undivided batch too.

    Nothing happens where the batch is one microbatch or the contrastive weight is 0. It works with
    ``device_train_microbatch_size: auto``: each attempt caches anew. Layers that count what they see in train
    mode, such as BatchNorm, see every batch twice.
    """

    def __init__(self) -> None:
        self._batch: PackedBatch | None = None
        self._pieces: list[_Piece] = []

    def match(self, event: Event, state: State) -> bool:
        """Around each batch and before each microbatch's forward."""
        return event in (
            Event.BATCH_START,
            Event.BEFORE_TRAIN_BATCH,
            Event.BEFORE_FORWARD,
            Event.AFTER_TRAIN_BATCH,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Cache at the start of an attempt, hand out before each forward, clear at the end."""
        model = lcl_model(state)
        if event == Event.BATCH_START:
            self._batch = state.batch
        elif event == Event.BEFORE_TRAIN_BATCH:
            assert self._batch is not None, "BATCH_START comes first"
            model.contrastive_override = None  # left behind if an attempt ran out of memory
            # The batch itself, not state.batch: that is a microbatch after such an attempt.
            microbatches = split_batch(
                self._batch, state.device_train_microbatch_size or len(self._batch["ids"])
            )
            wanted = len(microbatches) > 1 and model.contrastive_weight
            self._pieces = _cache(state, model, microbatches) if wanted else []
        elif event == Event.BEFORE_FORWARD and self._pieces:
            piece = self._pieces.pop(0)
            _set_random(state, piece.random)
            model.contrastive_override = piece.share
        elif event == Event.AFTER_TRAIN_BATCH:
            model.contrastive_override, self._batch = None, None


class _Piece:
    """What one microbatch needs: its features' gradients, its part of the loss, and how its dropout fell."""

    def __init__(
        self,
        model: LCLModel,
        random: _Random,
        grad_images_PE: Tensor,
        grad_contexts_PE: Tensor,
        grad_scalars: list[Tensor],
        value: Tensor,
    ):
        self.model, self.random, self.grad_scalars, self.value = model, random, grad_scalars, value
        self.grad_images_PE, self.grad_contexts_PE = grad_images_PE, grad_contexts_PE

    def share(self, images_PE: Tensor, contexts_PE: Tensor, total: Tensor) -> Tensor:
        """Stands for ``LCLModel.contrastive``: has the loss's value and passes on the cached gradients."""
        inner = (images_PE.float() * self.grad_images_PE).sum() + (
            contexts_PE.float() * self.grad_contexts_PE
        ).sum()
        for scalar, grad in zip(self.model.contrastive_scalars(), self.grad_scalars, strict=True):
            inner = inner + scalar * grad
        return inner - inner.detach() + self.value


def _cache(state: State, model: LCLModel, microbatches: list[PackedBatch]) -> list[_Piece]:
    """Features of all microbatches, L_con over all ranks, its gradients by microbatch."""
    randoms: list[_Random] = []
    images: list[Tensor] = []
    contexts: list[Tensor] = []
    with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
        for microbatch in microbatches:
            randoms.append(_get_random(state))
            outputs = model(state.device.batch_to_device(microbatch))
            images.append(outputs["image_features"])
            contexts.append(outputs["context_features"])
    if state.auto_microbatching:
        _stop_if_another_rank_ran_out_of_memory(state)
    # float32 leaves: the gradients of half-precision features would be rounded twice, or vanish in fp16.
    images_PE = torch.cat(images).float().requires_grad_()
    contexts_PE = torch.cat(contexts).float().requires_grad_()
    total = model.global_totals(state.device.batch_to_device(microbatches[0]))[2]
    with torch.enable_grad(), get_precision_context(state.precision, state.precision_config):
        loss = model.contrastive(images_PE, contexts_PE, total)
    leaves = [images_PE, contexts_PE, *model.contrastive_scalars()]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)  # a stopped side has no gradient
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    counts, parts = [len(x) for x in images], len(microbatches)
    split = zip(randoms, grads[0].split(counts), grads[1].split(counts), strict=True)
    return [
        _Piece(model, random, gi_PE, gc_PE, [grad / parts for grad in grads[2:]], loss.detach() / parts)
        for random, gi_PE, gc_PE in split
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
