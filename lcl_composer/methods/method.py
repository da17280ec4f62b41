"""A way to pre-train: its layout, its parts, its losses. What is the same for all of them stands here.

Algorithms, callbacks, evaluations, export and reports read :attr:`Method.parts` and :attr:`Method.terms` and
know no method.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from composer.core import State
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor, nn
from torchmetrics import Metric

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.methods.contrast import LOGIT_SCALE_MIN, Contrast
from lcl_composer.methods.metrics import HeldOutLoss
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import encoder_flops, training_flops
from lcl_composer.models.sharding import local

#: What ``forward`` returns: tensors by name.
Outputs = dict[str, Tensor]


@dataclass
class Term:
    """One loss of a method.

    Attributes:
        weight: Its factor in the total; algorithms may move it. At 0 it is not computed.
        count: What it is averaged over: one of :data:`lcl_composer.data.batch.TOTALS`.
        reads: Names of the outputs that it reads, and ``batch`` for the batch; of a contrast the images' and
            the other side's features.
        loss: ``(*what it reads, count over the global batch)`` to this rank's and microbatch's share. Shares
            add up over ranks and microbatches to the loss of the global batch. A contrast is a
            :class:`Contrast`.
        head: What it runs besides: parameters that no output depends on.
    """

    weight: float
    count: str
    reads: tuple[str, ...]
    loss: Callable[..., Tensor]
    head: nn.Module | None = None

    @property
    def contrast(self) -> Contrast | None:
        """The contrast, where this is one."""
        return self.loss if isinstance(self.loss, Contrast) else None

    def read(self, outputs: Outputs, batch: PackedBatch | None = None) -> list[Any]:
        """What the term reads, in its order; the batch is None where it does not matter.

        Raises:
            ConfigError: If an output is not there.
        """
        if not isinstance(outputs, Mapping):
            raise ConfigError(f"method: forward() returns a {type(outputs).__name__}; return outputs by name")
        readable: dict[str, Any] = {**outputs, "batch": batch}
        if missing := [name for name in self.reads if name not in readable]:
            raise ConfigError(
                f"method: a term reads {missing[0]!r}, which forward() does not return; it returns "
                f"{', '.join(sorted(outputs))}"
            )
        return [readable[name] for name in self.reads]

    def idle(self, outputs: Outputs) -> Tensor:
        """What the term would have read, times 0: DDP wants a gradient of every parameter."""
        read = [output for output in self.read(outputs) if isinstance(output, Tensor)]
        unused = [output for output in read if output.is_floating_point()]
        unused += map(local, self.contrast.scalars) if self.contrast else []
        unused += list(self.head.parameters()) if self.head is not None else []
        return torch.stack([0.0 * tensor.sum().float() for tensor in unused]).sum()


@dataclass
class StandIn:
    """What :func:`method_of` gives in place of a method whose weights are sharded, see ``methods/whole.py``.

    Attributes:
        model: A copy of the method.
        active: Whether it stands in now.
    """

    model: Method
    active: bool = False


class Method(ComposerModel):
    """The base of every method; Composer trains it.

    A subclass sets :attr:`part_names`, and in its constructor the modules of those names and :attr:`terms`;
    it writes :meth:`layout`, :meth:`forward` and :meth:`forward_flops`.
    Its constructor's parameters are the settings of ``method:`` in a YAML; ``encoder``, ``pooler``,
    ``language_model``, ``target_encoder`` and ``vocab_size`` are handed in where it has such a parameter.
    """

    #: Attributes that hold the parts, in the order in which data flow through them.
    part_names: ClassVar[tuple[str, ...]] = ("encoder", "pooler", "language_model")

    encoder: Encoder
    terms: dict[str, Term]

    #: [I, K'] numbers of the patches that the encoder kept in this forward; None: all. Set by PatchDropout.
    kept_patches: Tensor | None = None

    #: What is measured and exported where the weights are sharded; None: they are not.
    stand_in: StandIn | None = None

    def __init__(self) -> None:
        super().__init__()
        self._flops_per_image: int | None = None

    @classmethod
    def contrasts(cls, settings: Mapping[str, Any]) -> bool:
        """Whether a run with these settings of ``method:`` sets images of a batch against one another."""
        return False

    @classmethod
    def beyond_grad_cache(cls, settings: Mapping[str, Any]) -> str | None:
        """The setting by which a loss depends on the whole batch in a way that GradCache does not restore."""
        return None

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the setting and what is wrong: weights below 0, a scale that is not between its bounds."""
        numbers = {name: value for name, value in settings.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            if name.endswith("_weight") and value < 0:
                yield name, f"is {value}, a weight must be at least 0"
        scale, most = numbers.get("logit_scale_init", 1.0), numbers.get("logit_scale_max", math.inf)
        if not LOGIT_SCALE_MIN <= scale <= most:
            least = f"at least {LOGIT_SCALE_MIN}"
            yield "logit_scale_init", f"is {scale}, must be {least} and at most logit_scale_max, {most}"

    @abstractmethod
    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """How documents become tokens: picklable, as loader processes call it."""

    @abstractmethod
    def forward(self, batch: PackedBatch) -> Outputs:
        """Outputs by name; only what a term will read is computed, see :meth:`needs`.

        What no term reads is not left out of the graph, as DDP stops at a parameter without a gradient: its
        networks run on no rows, or on a blank one, and their output has none.
        """

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks by name, those that are None left out; what belongs to none of them is ``heads``."""
        named = {name: getattr(self, name) for name in self.part_names}
        return {name: part for name, part in named.items() if part is not None}

    def part_of(self, parameter_name: str) -> str:
        """The part that a parameter of this name belongs to."""
        first = parameter_name.split(".")[0]
        return first if first in self.part_names else "heads"

    def group_settings(self, parameter_name: str) -> dict[str, float]:
        """What the optimizer does otherwise to a parameter than the YAML says, such as ``{"lr": 0.1}``."""
        return {}

    def needs(self, *terms: str) -> bool:
        """Whether what one of these terms reads is to be computed: in training where it has a weight.

        An evaluation may read what a term without a weight would: retrieval does of the contrast.
        """
        return not self.training or any(self.terms[name].weight for name in terms)

    @property
    def contrast_term(self) -> Term | None:
        """The term that contrasts, where there is one."""
        return next((term for term in self.terms.values() if term.contrast), None)

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor | None, Tensor]:
        """Latents [I, E], None where nothing pools, and patch tokens [I, K, W] of images [I, 3, H, W]."""
        tokens_IKW = self._tokens(pixel_values)
        pooler = self.parts.get("pooler")
        return pooler(tokens_IKW) if pooler is not None else None, tokens_IKW

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Features of images [I, 3, H, W] as the contrast reads them, not normalised: [I, E] or [I, Q, E].

        Raises:
            ConfigError: If the method contrasts no images.
        """
        pooled, _ = self.encode_images(pixel_values)
        if pooled is None:
            raise ConfigError(f"the method {type(self).__name__} has no feature of an image as a whole")
        return pooled

    def text_features(self, batch: PackedBatch) -> Tensor:
        """Features [P, E] of P texts as the contrast reads them, not normalised; no image is read.

        Raises:
            ConfigError: If the method has no text side.
        """
        raise ConfigError(f"the method {type(self).__name__} contrasts images with no text")

    def patch_tokens(self, batch: PackedBatch) -> Tensor:
        """Patch tokens [I, K, W] of a batch's images.

        A batch without images runs a blank one of which nothing is kept: every rank must put every parameter
        into its graph, or DDP and FSDP stop.
        """
        return self._encode(batch, self._tokens)

    def _tokens(self, pixel_values: Tensor) -> Tensor:
        """Patch tokens of images, or those that a cache gives in place of images."""
        return pixel_values.float() if pixel_values.dim() == 3 else self.encoder(pixel_values)

    def slots(self, batch: PackedBatch) -> Tensor:
        """Flat positions [R, K'] of the tokens of the R images that the language model reads.

        K' are the patches that the encoder kept in its last forward.
        """
        starts, read, kept_IK = batch["image_starts"], batch["read"], self.kept_patches
        if kept_IK is None:
            patches = torch.arange(self.encoder.tokens_per_image, device=starts.device)
            kept_IK = patches.expand(len(starts), -1)
        return starts.index_select(0, read)[:, None] + kept_IK[: len(starts)].index_select(0, read)

    def class_tokens(self, batch: PackedBatch) -> Tensor:
        """Class tokens [I, W] of a batch's images, in the same way."""
        return self._encode(batch, self.encoder.class_tokens)

    def _encode(self, batch: PackedBatch, encode: Callable[[Tensor], Tensor]) -> Tensor:
        pixels = batch["pixel_values"]
        if len(pixels) or pixels.dim() == 3:
            return encode(pixels)
        side = self.encoder.image_size
        return encode(pixels.new_zeros(1, 3, side, side))[:0]

    def global_totals(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The batch's counts over all ranks, int64 and 0-dim."""
        totals = torch.stack(list(batch["totals"].values()))
        dist.all_reduce(totals, reduce_operation="SUM")
        return dict(zip(batch["totals"], totals.unbind(), strict=True))

    def shares(self, outputs: Outputs, batch: PackedBatch, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's and microbatch's share of each term that has a weight.

        A share is a sum over local targets or images divided by their count over all ranks and
        microbatches: the shares add up to the loss of the global batch, however unevenly it falls.
        """
        return {
            name: term.loss(*term.read(outputs, batch), totals[term.count])
            for name, term in self.terms.items()
            if term.weight
        }

    def loss(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """Losses of a microbatch, scaled so that Composer's and DDP's averaging leave the global batch's.

        Composer multiplies a microbatch's loss by its documents over the mean documents a rank, and DDP
        divides by the ranks; the factor undoes both.
        """
        totals = self.global_totals(batch)
        factor = totals["documents"] / len(batch["ids"])
        losses = {name: factor * share for name, share in self.shares(outputs, batch, totals).items()}
        total = torch.stack([self.terms[name].weight * loss for name, loss in losses.items()]).sum()
        idle = (term.idle(outputs) for term in self.terms.values() if not term.weight)
        return {**losses, "total": total + sum(idle)}

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations of a batch's forward by part, in the order of the flow; see ``models/flops.py``."""
        images = batch["pixel_values"]
        return {"encoder": self.image_flops() * len(images) if images.dim() == 4 else 0}

    def image_flops(self) -> int:
        """Operations of one image's forward through the encoder; counted once."""
        if self._flops_per_image is None:
            self._flops_per_image = encoder_flops(self.encoder)
        return self._flops_per_image

    def flops_per_batch(self, batch: PackedBatch) -> int:
        """Operations of this rank's training step; Composer's ``speed_monitor`` asks for it and logs MFU."""
        trained = {self.part_of(name) for name, p in self.named_parameters() if p.requires_grad}
        return training_flops(self.forward_flops(batch), trained)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Held-out losses; training losses are logged by Composer from :meth:`loss`."""
        return {} if is_train else {name: HeldOutLoss(name) for name in self.terms}

    def eval_forward(self, batch: PackedBatch, outputs: Any = None) -> dict[str, Any]:
        """Outputs of a held-out batch with the shares of its losses and the counts that they refer to."""
        outputs = outputs if outputs is not None else self(batch)
        totals = self.global_totals(batch)
        return {**outputs, "shares": self.shares(outputs, batch, totals), "totals": totals}

    def update_metric(self, batch: PackedBatch, outputs: Any, metric: Metric) -> None:
        """Add a held-out batch to one of the metrics of :meth:`get_metrics`."""
        assert isinstance(metric, HeldOutLoss)
        if metric.loss_name in outputs["shares"]:
            count = self.terms[metric.loss_name].count
            metric.update(
                outputs["shares"][metric.loss_name], outputs["totals"][count], batch["totals"][count]
            )


def method_of(state: State) -> Method:
    """The method that is being trained, without DistributedDataParallel around it, or its stand-in."""
    model = state.model
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    method = cast(Method, model)
    return method.stand_in.model if method.stand_in and method.stand_in.active else method


def contrast_of(method: Method, asks: str) -> tuple[Term, Contrast]:
    """The term of a method that contrasts, and its contrast.

    Args:
        method: The method.
        asks: The setting that needs it, for the message.

    Raises:
        ConfigError: If the method contrasts nothing.
    """
    term = method.contrast_term
    if term is None or term.contrast is None:
        raise ConfigError(f"{asks}: the method {type(method).__name__} contrasts nothing; remove it")
    return term, term.contrast
