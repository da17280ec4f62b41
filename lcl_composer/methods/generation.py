"""What every method that predicts tokens shares: the norm after the language model, the head, the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.losses import generation_loss
from lcl_composer.methods.method import Outputs, Term
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.multimodal_decoder import MultimodalDecoder


class Generation:
    """Cross-entropy of the token that a position predicts, over the targets of the global batch.

    Norm and head are modules of the owner, ``generation_norm`` and ``generation_head``, in every checkpoint.

    Args:
        owner: The method, or the part of it that they are to be frozen with.
        language_model: Its hidden size is E; where its output is normalised already, the norm does nothing,
            and where it is pretrained, the head starts from its output layer.
        vocab_size: Rows V of the head.
        backend: ``torch`` or ``triton`` for the fused loss; None chooses by device.
    """

    def __init__(
        self,
        owner: nn.Module,
        language_model: TransformersLM | MultimodalDecoder,
        vocab_size: int,
        backend: str | None = None,
    ):
        width = language_model.hidden_size
        owner.generation_norm = nn.Identity() if language_model.has_final_norm else nn.LayerNorm(width)
        head = owner.generation_head = nn.Linear(width, vocab_size, bias=False)
        if isinstance(language_model, TransformersLM):
            pretrained = language_model.take_output_embedding()
            if pretrained is not None:
                head.weight.data.copy_(pretrained)
        self._owner: Any = owner
        self.backend = backend

    def term(self, weight: float) -> Term:
        """The loss as a term of the method."""
        return Term(weight, "targets", ("hidden", "targets"), self, self._owner.generation_head)

    def normalise(self, outputs: Tensor) -> Tensor:
        """The language model's outputs [N, E] after the norm."""
        return self._owner.generation_norm(outputs)

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits [..., V] of the language model's outputs [..., E]."""
        return self._owner.generation_head(self.normalise(outputs))

    def outputs(self, batch: PackedBatch, outputs_TE: Tensor) -> Outputs:
        """What the loss reads of the language model's outputs [T, E].

        Returns:
            ``hidden`` [N, E] at the N positions that predict, after the norm; ``targets`` [N] int64.
        """
        return {
            "hidden": self.normalise(outputs_TE.index_select(0, batch["predicting"])),
            "targets": batch["targets"].index_select(0, batch["predicting"]),
        }

    def __call__(self, hidden_NE: Tensor, targets_N: Tensor, total: Tensor) -> Tensor:
        """This rank's and microbatch's share of the loss."""
        head = self._owner.generation_head
        return generation_loss(hidden_NE, head.weight, targets_N, total=total, backend=self.backend)

    def flops(self, batch: PackedBatch) -> int:
        """Operations of the head in a batch's forward: the vocabulary's matrix a target."""
        return 2 * len(batch["predicting"]) * self._owner.generation_head.weight.numel()
