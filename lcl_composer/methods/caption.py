"""Captions and answers: what a language model writes about an image, read from an encoder's patch tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.captioned import QUESTION, Captioned
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method, Outputs
from lcl_composer.models.connector import Connector
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.writer import Decoding, write


class Caption(Method):
    """Captions of images: an MLP from the patch tokens into a causal language model.

    The transfer of LCL's figure 3 (arXiv 2406.07543), with the connector of LLaVA-1.5 (arXiv 2310.03744):
    cross-entropy of the caption's tokens, given the image and what stands before them. Frozen or not is
    ``layer_freezing``'s to say; the part ``language_model`` holds its head, so that a frozen one is frozen
    whole.

    Args:
        encoder: Pixels to patch tokens.
        language_model: Causal LM over the image's tokens and the text, by config or pretrained.
        vocab_size: Rows V of the head, which starts from a pretrained language model's own.
        prompt: What precedes the caption, such as ``a photo of``; it is not learned.
        backend: Implementation of the fused loss; null: triton on CUDA, torch elsewhere.
    """

    part_names: ClassVar[tuple[str, ...]] = ("encoder", "connector", "language_model")

    def __init__(
        self,
        encoder: Encoder,
        language_model: TransformersLM,
        vocab_size: int,
        prompt: str = "",
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        self.encoder, self.language_model, self.prompt = encoder, language_model, prompt
        self.connector = Connector(encoder.width, language_model.hidden_size)
        self.generation = Generation(language_model, language_model, vocab_size, backend)
        self.terms = {"generation": self.generation.term(1.0)}

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a prompt with a question in it."""
        yield from super().refusals(settings)
        if QUESTION in settings["prompt"]:
            yield "prompt", f"has a question in it, {QUESTION}; use the method vqa"

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """The image, the prompt, and a caption, or an answer, of which alone something is predicted."""
        return Captioned(tokenizer, rules, self.prompt)

    def _image_tokens(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Tokens [S, E] of the images as the language model reads them, and their flat slots [S]."""
        return self.connector(self.patch_tokens(batch)).flatten(0, 1), self.slots(batch).flatten()

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``hidden`` [N, E] at the N positions that predict, after norm; ``targets`` [N] int64.
        """
        return self.generation.outputs(batch, self.language_model.read(batch, *self._image_tokens(batch)))

    def write(self, batch: PackedBatch, tokenizer: Tokenizer, decoding: Decoding) -> list[list[int]]:
        """Ids of what the model writes about each image; what the batch itself says is not read.

        Args:
            batch: Laid out by :meth:`layout`, on the model's device; documents without tokens get nothing.
            tokenizer: That of the layout.
            decoding: How to write.

        Returns:
            The ids of each document [D], without prompt and end.
        """
        embeddings_TE = self.language_model.embed(batch["tokens"], *self._image_tokens(batch))
        return write(self.language_model, self.generation.logits, batch, embeddings_TE, tokenizer, decoding)

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the language model's head is the vocabulary's matrix a target."""
        tokens = len(batch["pixel_values"]) * self.encoder.tokens_per_image
        text = language_model_flops(self.language_model, batch["lengths"])
        return {
            **super().forward_flops(batch),
            "connector": self.connector.flops(tokens),
            "language_model": text + self.generation.flops(batch),
        }


class VQA(Caption):
    """Answers to questions about images: ``caption`` with a question in the prompt.

    Args:
        encoder: Pixels to patch tokens.
        language_model: Causal LM over the image's tokens and the text, by config or pretrained.
        vocab_size: Rows V of the head, which starts from a pretrained language model's own.
        prompt: What precedes the answer, the question as ``{}``; the default is BLIP-2's (arXiv 2301.12597,
            section 4.3).
        backend: Implementation of the fused loss; null: triton on CUDA, torch elsewhere.
    """

    def __init__(
        self,
        encoder: Encoder,
        language_model: TransformersLM,
        vocab_size: int,
        prompt: str = "Question: {} Answer:",
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__(encoder, language_model, vocab_size, prompt, backend)

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a prompt without a question."""
        if settings["prompt"].count(QUESTION) != 1:
            prompt = repr(settings["prompt"])
            yield "prompt", f"{prompt} has no place for the question, or several; write one {QUESTION}"
