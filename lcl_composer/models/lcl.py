"""The ComposerModel: L = contrastive_weight * L_con + generation_weight * L_gen over the global batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor, nn
from torchmetrics import Metric

from lcl_composer.data.batch import PackedBatch
from lcl_composer.losses import contrastive_loss, generation_loss, sigmoid_contrastive_loss
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import encoder_flops, training_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.metrics import HeldOutLoss
from lcl_composer.models.network import LCLNetwork, LCLOutputs
from lcl_composer.models.pooler import AttentivePooler


class LCLModel(LCLNetwork, ComposerModel):
    """Latent Compression Learning (arXiv 2406.07543, equation 8) for the Composer Trainer.

    Args:
        encoder: Pixels to patch tokens.
        pooler: Patch tokens to latents.
        language_model: Causal LM.
        vocab_size: Rows of the generation head.
        contrastive_weight: Weight of L_con; at 0 it is not computed.
        generation_weight: Weight of L_gen; at 0 it is not computed.
        logit_scale_init: Scale (1 / temperature) at the start.
        logit_scale_max: The learnable scale is clamped to at most this.
        contrastive: ``info_nce`` (the paper's), or ``sigmoid`` (SigLIP's, with a learnable bias from -10).
        backend: ``torch`` or ``triton`` for the fused losses; None chooses by device.
    """

    def __init__(
        self,
        encoder: Encoder,
        pooler: AttentivePooler,
        language_model: TransformersLM,
        vocab_size: int,
        contrastive_weight: float = 0.1,
        generation_weight: float = 1.0,
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        contrastive: Literal["info_nce", "sigmoid"] = "info_nce",
        backend: str | None = None,
    ):
        super().__init__(encoder, pooler, language_model, vocab_size)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale_init)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if contrastive == "sigmoid" else None
        self.contrastive_weight, self.generation_weight = contrastive_weight, generation_weight
        self.logit_scale_max, self.backend = logit_scale_max, backend
        # What algorithms set: a lower bound on the scale, sides of L_con that get no gradient, and what
        # stands for L_con in a microbatch (GradCache).
        self.logit_scale_min = 1e-3
        self.stop_gradient_images = self.stop_gradient_contexts = False
        self.contrastive_override: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self._flops_per_image: int | None = None

    def scale(self) -> Tensor:
        """Scale of the contrastive logits (0-dim), exp of the parameter.

        The parameter itself is held between its bounds, as in OpenCLIP: clamping the result would leave it
        without a gradient beyond the maximum, and it would never come back.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(math.log(self.logit_scale_min), math.log(self.logit_scale_max))
        return self.logit_scale.exp()

    def contrastive(self, images_PE: Tensor, contexts_PE: Tensor, total: Tensor) -> Tensor:
        """This rank's share of L_con; a side whose gradient is stopped enters as a constant.

        Args:
            images_PE: [P, E] latents of anchored images.
            contexts_PE: [P, E] language-model outputs at their anchors.
            total: Anchored images of the global batch.
        """
        images_PE = images_PE.detach() if self.stop_gradient_images else images_PE
        contexts_PE = contexts_PE.detach() if self.stop_gradient_contexts else contexts_PE
        scale, options = self.scale(), {"total": total, "backend": self.backend}
        if self.logit_bias is not None:
            return sigmoid_contrastive_loss(images_PE, contexts_PE, scale, self.logit_bias, **options)
        return contrastive_loss(images_PE, contexts_PE, scale, **options)

    def contrastive_scalars(self) -> list[nn.Parameter]:
        """The learnable scalars of L_con: the scale's logarithm and, of the sigmoid loss, the bias."""
        return [self.logit_scale] if self.logit_bias is None else [self.logit_scale, self.logit_bias]

    def global_totals(self, batch: PackedBatch) -> Tensor:
        """``[documents, targets, anchored images]`` of the batch over all ranks, int64 [3]."""
        totals = batch["totals"].clone()
        dist.all_reduce(totals, reduce_operation="SUM")
        return totals

    def shares(self, outputs: LCLOutputs, batch: PackedBatch) -> tuple[dict[str, Tensor], Tensor]:
        """This rank's and microbatch's share of each loss, and the counts of the global batch.

        A share is a sum over local targets or images divided by their count over all ranks and
        microbatches: the shares add up to the loss of the global batch, however unevenly it falls.

        Returns:
            Losses by name, and ``[documents, targets, anchored images]`` over all ranks (int64 [3]).
        """
        totals = self.global_totals(batch)
        losses: dict[str, Tensor] = {}
        if self.contrastive_weight:
            contrastive = self.contrastive_override or self.contrastive
            losses["contrastive"] = contrastive(
                outputs["image_features"], outputs["context_features"], totals[2]
            )
        if self.generation_weight:
            head_VE = self.generation_head.weight
            losses["generation"] = generation_loss(
                outputs["hidden"], head_VE, outputs["targets"], total=totals[1], backend=self.backend
            )
        return losses, totals

    def loss(self, outputs: LCLOutputs, batch: PackedBatch) -> dict[str, Tensor]:
        """Losses of a microbatch, scaled so that Composer's and DDP's averaging leave the global batch's.

        Composer multiplies a microbatch's loss by its documents over the mean documents a rank, and DDP
        divides by the ranks; the factor undoes both.
        """
        shares, totals = self.shares(outputs, batch)
        factor = totals[0] / len(batch["ids"])
        losses = {name: factor * share for name, share in shares.items()}
        return {**losses, "total": self._weighted(losses, outputs)}

    def _weighted(self, losses: dict[str, Tensor], outputs: LCLOutputs) -> Tensor:
        """The weighted sum; what no loss uses enters times 0: DDP wants every gradient."""
        weights = {"contrastive": self.contrastive_weight, "generation": self.generation_weight}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        unused: list[Tensor] = []
        if self.stop_gradient_images:
            unused.append(outputs["image_features"].sum())
        if self.stop_gradient_contexts:
            unused.append(outputs["context_features"].sum())
        if "contrastive" not in losses:
            unused += [outputs["image_features"].sum(), outputs["context_features"].sum()]
            unused += self.contrastive_scalars()
        if "generation" not in losses:
            unused += [outputs["hidden"].sum(), self.generation_head.weight[0, 0]]
        return total + sum(0.0 * part for part in unused)

    def flops_per_batch(self, batch: PackedBatch) -> int:
        """Operations of this rank's training step; Composer's ``speed_monitor`` asks for it and logs MFU."""
        if self._flops_per_image is None:
            self._flops_per_image = encoder_flops(self.encoder)
        return training_flops(self, batch, self._flops_per_image)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Held-out losses; training losses are logged by Composer from :meth:`loss`."""
        return {} if is_train else {name: HeldOutLoss(name) for name in ("contrastive", "generation")}

    def eval_forward(self, batch: PackedBatch, outputs: Any = None) -> dict[str, Any]:
        """Outputs of a held-out batch with the shares of its losses and the counts that they refer to."""
        outputs = outputs if outputs is not None else self(batch)
        shares, totals = self.shares(outputs, batch)
        return {**outputs, "shares": shares, "totals": totals}

    def update_metric(self, batch: PackedBatch, outputs: Any, metric: Metric) -> None:
        """Add a held-out batch to one of the metrics of :meth:`get_metrics`."""
        assert isinstance(metric, HeldOutLoss)
        if metric.loss_name in outputs["shares"]:
            index = {"generation": 1, "contrastive": 2}[metric.loss_name]
            metric.update(
                outputs["shares"][metric.loss_name], outputs["totals"][index], batch["totals"][index]
            )
