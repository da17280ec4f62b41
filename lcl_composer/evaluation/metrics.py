"""Recall at k from two feature matrices whose rows belong together."""

from __future__ import annotations

import torch
from torch import Tensor

#: Two cosines closer than this count as tied: blocked matrix products round equal rows differently.
TIE = 1e-6


def cosines(queries: Tensor, gallery: Tensor) -> Tensor:
    """Cosine [N, M] of each of N queries with each of M gallery rows.

    A row is a feature [E]; an image may have several [Q, E], of which the one nearest to the other counts, as
    in BLIP-2's contrast.
    """
    if gallery.ndim == 3:
        return cosines(gallery, queries).T
    queries, gallery = (torch.nn.functional.normalize(side.float(), dim=-1) for side in (queries, gallery))
    cosine = queries @ gallery.T
    return cosine.amax(1) if cosine.ndim == 3 else cosine


def nearest_features(images: Tensor, contexts: Tensor) -> Tensor:
    """Of the features of each image, [N, E] or [N, Q, E], the nearest to its context [N, E]: [N, E]."""
    if images.ndim == 2:
        return images
    images, contexts = (side.float() for side in (images, contexts))
    nearest = torch.nn.functional.cosine_similarity(images, contexts[:, None], dim=2).argmax(1)
    return images[torch.arange(len(images), device=images.device), nearest]


def ranks_of_match(queries: Tensor, gallery: Tensor, *, chunk: int = 1024) -> Tensor:
    """Rank of the matching gallery row of each query by cosine; 0 is the best.

    Row i of ``gallery`` matches row i of ``queries``. Ties count against us, and so does a cosine that is
    not finite: features that have collapsed to one point (or to NaN) give the worst rank, not a lucky one.

    Args:
        queries: Features [N, E] or [N, Q, E], not necessarily normalised.
        gallery: Features [N, E] or [N, Q, E].
        chunk: Queries compared at once; bounds the memory at ``chunk * N`` floats, or ``chunk * N * Q``.

    Returns:
        Ranks [N] int64 in ``0..N-1``.

    Raises:
        ValueError: If the two shapes differ.
    """
    if (len(queries), queries.shape[-1]) != (len(gallery), gallery.shape[-1]):
        raise ValueError(f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} differ in shape")
    ranks = []
    for start in range(0, len(queries), chunk):
        cosine = cosines(queries[start : start + chunk], gallery)
        match = cosine.diagonal(offset=start).unsqueeze(1)
        # "not clearly below" is true for ties and NaN; the match itself is always among them
        ranks.append((~(cosine < match - TIE)).sum(1) - 1)
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64)


def caption_ranks(
    images: Tensor, captions: Tensor, owners: Tensor, *, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Ranks where an image has several captions, as on COCO and Flickr30k (Karpathy's protocol).

    Of an image the best of its own captions counts: its rank is the number of other images' captions before
    it. A caption's rank is the number of images before its own. Ties and cosines that are not finite count
    against us: another image's caption of the same words stands before one's own.

    Args:
        images: Features [N, E] or [N, Q, E], not necessarily normalised.
        captions: Features [M, E].
        owners: The image of each caption, [M] int64; every image has one at least.
        chunk: Rows compared at once; bounds the memory at ``chunk`` times the other side.

    Returns:
        Ranks of the images [N] and of the captions [M], int64; 0 is the best.

    Raises:
        ValueError: If an image has no caption.
    """
    if len(owners.unique()) != len(images):
        raise ValueError(f"{len(images)} images, {len(owners.unique())} of which have captions")
    image_ranks, caption_ranks_ = [], []
    for start in range(0, len(images), chunk):
        cosine = cosines(images[start : start + chunk], captions)
        own = owners == torch.arange(start, start + len(cosine))[:, None]
        best = cosine.masked_fill(~own, -torch.inf).amax(1, keepdim=True)  # NaN where one of its own is
        image_ranks.append((~(cosine < best - TIE) & ~own).sum(1))
    for start in range(0, len(captions), chunk):
        cosine = cosines(captions[start : start + chunk], images)
        match = cosine.gather(1, owners[start : start + chunk, None])
        caption_ranks_.append((~(cosine < match - TIE)).sum(1) - 1)
    return torch.cat(image_ranks), torch.cat(caption_ranks_)


def recall_at_k(queries: Tensor, gallery: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries whose match stands among the ``k`` nearest gallery rows.

    Args:
        queries: Features [N, E].
        gallery: Features [N, E]; row i matches query i.
        ks: Cut-offs.

    Returns:
        ``{k: share in 0..1}``; 0 for every k where N is 0.
    """
    ranks = ranks_of_match(queries, gallery)
    return {k: float((ranks < k).float().mean()) if len(ranks) else 0.0 for k in ks}


def chance_at_k(candidates: int, k: int) -> float:
    """Recall at k of a random order of ``candidates`` rows, one of which matches."""
    return min(k, candidates) / candidates if candidates else 0.0


def retrieval_metrics(images: Tensor, contexts: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Retrieval both ways beside chance.

    Args:
        images: Image features [N, E] or [N, Q, E].
        contexts: Features of the text before each image [N, E].
        ks: Cut-offs.

    Returns:
        ``image_to_text/recall@k``, ``text_to_image/recall@k`` and ``chance/recall@k`` for each k, all in
        0..1, and ``candidates`` (N).
    """
    forward, backward = recall_at_k(images, contexts, ks), recall_at_k(contexts, images, ks)
    metrics = {"candidates": float(len(images))}
    for k in ks:
        metrics[f"image_to_text/recall@{k}"] = forward[k]
        metrics[f"text_to_image/recall@{k}"] = backward[k]
        metrics[f"chance/recall@{k}"] = chance_at_k(len(images), k)
    return metrics
