"""Zero-shot retrieval on held-out documents: images against the text before them, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.metrics import retrieval_metrics
from lcl_composer.evaluation.quiet import device_of, undisturbed
from lcl_composer.methods.method import Method, contrast_of
from lcl_composer.models.finite import check_finite


@dataclass(frozen=True)
class PairedFeatures:
    """Features of K anchored images and of what stands before them.

    Attributes:
        keys: Document id and the image's number among the document's images of the batch, [K].
        images: Pooled latents [K, E] float32 on the CPU, not normalised; [K, Q, E] where an image has several
            features.
        contexts: LM outputs at ``<start_of_img>`` after norm and projection, [K, E] float32 on the CPU.
    """

    keys: list[tuple[str, int]]
    images: Tensor
    contexts: Tensor


def to_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """Copy of a batch with its tensors on ``device``."""
    values = cast("dict[str, Any]", batch)
    moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()}
    return cast(PackedBatch, moved)


def anchored_keys(batch: PackedBatch) -> list[tuple[str, int]]:
    """(document id, number of the image in the document) of each anchored image of a batch, in order."""
    counts = batch["images_per_document"].tolist()
    keys = [
        (name, number) for name, count in zip(batch["ids"], counts, strict=True) for number in range(count)
    ]
    return [key for key, anchor in zip(keys, batch["anchors"].tolist(), strict=True) if anchor >= 0]


def collect_features(model: Method, batches: Iterable[PackedBatch], max_images: int | None) -> PairedFeatures:
    """Run ``model`` over ``batches`` until ``max_images`` anchored images are there, over all ranks.

    Every rank brings its share. Documents that a sharded loader hands out twice (to fill the last batch)
    count once: their copies would tie with themselves. All ranks must call this together.

    Args:
        model: Its contrast reads features of the images and of the other side, [P, E] each.
        batches: Held-out batches; iterated once, left as soon as there is enough.
        max_images: Upper bound of K; None takes all.

    Raises:
        ConfigError: If the method contrasts nothing.
        DataError: On all ranks, if a feature is not finite.
    """
    image_side, other_side = contrast_of(model, "retrieval")[0].reads
    _, world_size = world()
    wanted = None if max_images is None else -(-max_images // world_size)
    device, keys, images, contexts = device_of(model), [], [], []
    for batch in batches:
        outputs = model(to_device(batch, device))
        keys += anchored_keys(batch)
        images.append(outputs[image_side].float().cpu())
        contexts.append(outputs[other_side].float().cpu())
        if wanted is not None and len(keys) >= wanted:
            break
    parts = gather_objects((keys[:wanted], images, contexts))
    return _merge(parts, max_images)


def _merge(parts: list[tuple[Any, list[Tensor], list[Tensor]]], max_images: int | None) -> PairedFeatures:
    """Join the parts of all ranks, drop repeated keys, cut at ``max_images``."""
    seen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for keys, images, contexts in parts:
        if keys:  # keys may be fewer than rows: the last batch can bring more than wanted
            for key, image, context in zip(keys, torch.cat(images), torch.cat(contexts), strict=False):
                seen.setdefault(key, (image, context))
    kept = list(seen.items())[:max_images]
    if not kept:
        return PairedFeatures([], torch.empty(0, 1), torch.empty(0, 1))
    stack = [torch.stack([pair[side] for _, pair in kept]) for side in (0, 1)]
    check_finite("features of data.eval", {"images": stack[0], "contexts": stack[1]})
    return PairedFeatures([key for key, _ in kept], stack[0], stack[1])


def evaluate_retrieval(
    model: Method, batches: Iterable[PackedBatch], max_images: int | None = None
) -> dict[str, float]:
    """Recall at 1, 5 and 10 of anchored images against the text before them, and back.

    The features are those that the contrastive loss sees: the pooled latent of an image (attentive pooler)
    and the language model's output at its ``<start_of_img>``. Every image is ranked against the contexts of
    all K images, those of its own document included. Training is left as it was: modes, random states and
    gradients.

    Args:
        model: A method that contrasts.
        batches: Held-out batches (a DataLoader or a list). All ranks must call this together.
        max_images: Upper bound of K; None takes all.

    Returns:
        What :func:`lcl_composer.evaluation.metrics.retrieval_metrics` returns.
    """
    with undisturbed(model):
        features = collect_features(model, batches, max_images)
    return retrieval_metrics(features.images, features.contexts)
