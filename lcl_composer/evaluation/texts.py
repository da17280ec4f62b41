"""Texts and images to the features that a method contrasts, without a loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import Layout
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.features import pools_images
from lcl_composer.evaluation.quiet import device_of
from lcl_composer.evaluation.retrieval import to_device
from lcl_composer.methods.method import Method, contrast_of
from lcl_composer.models.finite import check_finite


def check_sides(model: Method, asks: str) -> None:
    """Raise ConfigError unless a method has a feature of an image and of a text to compare.

    Args:
        model: The method.
        asks: The setting that needs them, for the message.
    """
    contrast_of(model, asks)
    kind, name = type(model), type(model).__name__
    if kind.text_features is Method.text_features:
        raise ConfigError(f"{asks}: the method {name} contrasts images with no text; remove it")
    if kind.image_features is Method.image_features and not pools_images(model):
        raise ConfigError(f"{asks}: the method {name} has no feature of an image as a whole; remove it")


def text_features(model: Method, layout: Layout, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Features of texts as the method's contrast reads them.

    A text is laid out as one that an image follows: for LCL the feature is the language model's output at the
    ``<start_of_img>`` behind it, for the methods on pairs that of a text. No image is read.

    Args:
        model: In eval mode; gradients are the caller's business.
        layout: The method's.
        texts: Each with at least one token.
        batch_size: Texts a forward.

    Returns:
        [N, E] float32 on the CPU, not normalised.

    Raises:
        ConfigError: If the method has no text side.
        DataError: If a text has no token, or too few for the method, or a feature is not finite.
    """
    device, features = device_of(model), []
    for batch in text_batches(layout, texts, batch_size):
        features.append(model.text_features(to_device(batch, device)).float().cpu())
    whole = torch.cat(features)
    check_finite("features of texts", {"texts": whole})
    return whole


def text_batches(layout: Layout, texts: Sequence[str], batch_size: int) -> Iterator[PackedBatch]:
    """Packed batches of the texts in order, each text a document with an image of one pixel behind it.

    Raises:
        DataError: If a text has no token, or too few for the method to contrast it.
    """
    for first in range(0, len(texts), batch_size):
        samples = []
        for text in texts[first : first + batch_size]:
            document = Document(f"text {text!r}", "", (Text(text), Image(b"")))
            laid_out = layout(document, np.random.default_rng(0))
            if len(laid_out.anchors) != 1 or laid_out.anchors[0] < 0:
                raise DataError(
                    f"text {text!r}: has no feature; it is empty, or shorter than data.min_context_tokens"
                )
            samples.append(make_sample(document.id, laid_out, torch.zeros(1, 3, 1, 1, dtype=torch.uint8)))
        yield collate(samples)
