"""How large a run is: model, optimizer, checkpoint and batch in bytes, without memory for any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from lcl_composer import registry
from lcl_composer.data.collate import Sample, collate, make_sample
from lcl_composer.data.interleave import filled
from lcl_composer.data.rng import sample_rng
from lcl_composer.errors import one_line
from lcl_composer.methods.build import layout_rules, model_on_meta
from lcl_composer.methods.fast import named_blocks
from lcl_composer.models.blocks import recompute

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig
    from lcl_composer.data.document import Document
    from lcl_composer.data.tokenizer import Tokenizer
    from lcl_composer.methods.method import Method

#: Documents that run through the model on the meta device; more are counted as multiples of these.
_DOCUMENTS = 8


@dataclass(frozen=True)
class Sizes:
    """Bytes of a run.

    Attributes:
        weights: Of all parameters and buffers, as they are trained (float32).
        gradients: Of the parameters that are not frozen for good.
        optimizer: Its state of these.
        average: The moving average of the ``ema`` algorithm, 0 without it.
        sample: A document of the loader's batch: tokens and pixels.
        activations: What forward keeps of a document for backward, in float32.
        tokens: Mean tokens of these documents.
        documents: Documents of the data that sample and activations were counted on; 0: there were none to
            look at, and a document was taken to be as full as ``data.max_tokens`` lets it be.
        uncounted: Why the activations could not be counted; "" if they were.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    sample: int
    activations: int
    tokens: int
    documents: int
    uncounted: str = ""

    @property
    def basis(self) -> str:
        """What sample and activations were counted on, in words."""
        if self.documents:
            return f"{self.documents} documents of the data"
        return "documents that fill data.max_tokens, as there are none here to look at"

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint."""
        return self.weights + self.optimizer + self.average

    @property
    def resident(self) -> int:
        """Bytes that a rank holds during the whole run."""
        return self.weights + self.gradients + self.optimizer + self.average


def measure(run: RunConfig, streams: Sequence[Sequence[Document]]) -> Sizes:
    """Count the bytes of a run, its model built and run on the meta device.

    Args:
        run: The run.
        streams: Some documents of each stream; a batch is counted as if it were all of the largest. Without
            any, a document is as full as ``data.max_tokens`` lets it be.
    """
    model, tokenizer, _ = model_on_meta(run)
    freeze(run, model)
    if run.activation_checkpointing is not None:
        for of_part in named_blocks(run, model)["activation_checkpointing"].values():
            for block in of_part[:: run.activation_checkpointing.every]:
                recompute(block)
    samples, documents = _largest(run, model, tokenizer, [stream for stream in streams if stream])
    activations, uncounted = 0, ""
    try:
        activations = kept_for_backward(model, samples) // len(samples)
    except Exception as error:  # a method's forward may ask the device for a number, and meta has none
        uncounted = one_line(error, 120)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(_bytes(p) for p in trained)
    ema = run.algorithms.get("ema")
    averaged = model.encoder if ema is not None and ema.get("part") == "encoder" else model
    return Sizes(
        weights=sum(_bytes(t) for t in [*model.parameters(), *model.buffers()]),
        gradients=gradients,
        optimizer=round(gradients * state_share(run)),
        average=sum(_bytes(p) for p in averaged.parameters()) if ema is not None else 0,
        sample=sum(_sample_bytes(sample) for sample in samples) // len(samples),
        activations=activations,
        tokens=sum(len(sample["tokens"]) for sample in samples) // len(samples),
        documents=documents,
        uncounted=uncounted,
    )


def freeze(run: RunConfig, model: Method) -> None:
    """Leave out of training what the run's ``layer_freezing`` freezes for good."""
    spec = run.algorithms.get("layer_freezing")
    if spec is not None:
        freezing = registry.algorithms.build({"name": "layer_freezing", **spec})
        freezing.check(model)
        freezing.prepare(model)


def state_share(run: RunConfig) -> float:
    """Bytes of the optimizer's state for a byte of parameter, found by a step of one small parameter."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = registry.optimizers.build(run.optimizer.spec(), params=[parameter])
    optimizer.step()
    state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    return sum(_bytes(value) for value in state if value.dim()) / _bytes(parameter)


def kept_for_backward(model: Method, samples: Sequence[Sample]) -> int:
    """Bytes that a forward of the samples keeps for its backward, in float32, beside the weights.

    Attention is counted as FlashAttention and the memory-efficient kernels keep it (arXiv 2205.14135): its
    inputs, its output and a number a row, without the matrix of scores. What gradient checkpointing computes
    again is not kept. The losses work in blocks and keep next to nothing.
    """
    batch: Any = {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in collate(samples).items()
    }
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    with _FlashShaped(), saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(storage.nbytes() for storage in kept.values())


def _largest(
    run: RunConfig, model: Method, tokenizer: Tokenizer, streams: Sequence[Sequence[Document]]
) -> tuple[list[Sample], int]:
    """The samples of the stream whose documents are the largest, and their number; 0 if they are made up."""
    tokens_per_image: Any = model.encoder.tokens_per_image
    layout = model.layout(tokenizer, layout_rules(run, tokens_per_image))
    size = run.data.image_size

    def samples(documents: Sequence[Document]) -> list[Sample]:
        found = []
        for document in documents[:_DOCUMENTS]:
            placed = layout(document, sample_rng(run.seed, 0, document.id, "layout"))
            pixels = torch.empty(len(placed.images), 3, size, size, dtype=torch.uint8, device="meta")
            if len(placed.tokens):
                found.append(make_sample(document.id, placed, pixels))
        return found

    sets = [found for stream in streams if (found := samples(stream))]
    if not sets:
        full = layout.full_document() if hasattr(layout, "full_document") else filled(1, run.data.max_tokens)
        return samples([full]), 0
    largest = max(sets, key=lambda each: sum(map(_sample_bytes, each)) / len(each))
    return largest, len(largest)


def _sample_bytes(sample: Sample) -> int:
    arrays = [sample[key] for key in ("tokens", "targets", "image_starts", "anchors", "seeds")]
    positions = 2 * sample["tokens"].nbytes  # and the places that the collator adds, of the same order
    return sum(array.nbytes for array in arrays) + positions + _bytes(sample["pixel_values"])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _FlashShaped(TorchFunctionMode):
    """Attention that keeps for backward what the kernels on a GPU keep; the meta device would keep scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Kept.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Kept(torch.autograd.Function):
    """Without a backward: what the forward keeps is all that is asked for."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))
        return out
