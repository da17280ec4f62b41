"""Retrieval to look at: a few held-out images and texts, and what the model finds for each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.tokenizer import Tokenizer, structural_ids
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.metrics import TIE, cosines, ranks_of_match
from lcl_composer.evaluation.retrieval import PairedFeatures, anchored_keys

#: Longest side of a thumbnail in pixels.
THUMBNAIL = 112

#: Tokens before an image that are kept; those next to it say most about it.
CONTEXT_TOKENS = 96

#: Stands for an earlier image in a text.
IMAGE_MARK = "▣"

Key = tuple[str, int]


@dataclass(frozen=True)
class Card:
    """What a person sees of an anchored image.

    Attributes:
        pixels: uint8 [h, w, 3], no side longer than :data:`THUMBNAIL`.
        context: Ids of the last :data:`CONTEXT_TOKENS` tokens before the image.
    """

    pixels: np.ndarray
    context: list[int]


class Gallery:
    """Keep thumbnails and texts while features are collected, then write ``gallery.json`` with pictures.

    The queries are spread evenly over the candidates in the order of their keys, so that runs on the same
    held-out documents show the same ones, on any number of ranks.

    Args:
        tokenizer: Gives the texts back.
        queries: Images, and texts, to search for.
        top: Results a query.
    """

    def __init__(self, tokenizer: Tokenizer, queries: int = 8, top: int = 5):
        self.tokenizer, self.queries, self.top = tokenizer, queries, top
        self.cards: dict[Key, Card] = {}

    def watch(self, batches: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
        """Yield the batches and keep a card of each anchored image."""
        for batch in batches:
            anchored = batch["anchors"] >= 0
            pixels, anchors = batch["pixel_values"][anchored], batch["anchors"][anchored].tolist()
            starts = batch["cu_seqlens"].tolist()
            for key, image, anchor in zip(anchored_keys(batch), pixels, anchors, strict=True):
                first = max(start for start in starts if start <= anchor)
                context = batch["tokens"][max(first, anchor - CONTEXT_TOKENS) : anchor].tolist()
                self.cards[key] = Card(thumbnail(image), context)
            yield batch

    def write(self, features: PairedFeatures, folder: Path) -> None:
        """Write ``gallery.json`` and ``gallery/NNN.jpg`` (rank 0); all ranks call it together.

        Args:
            features: What was collected from the watched batches.
            folder: The run folder.
        """
        order = sorted(range(len(features.keys)), key=lambda i: features.keys[i])
        keys = [features.keys[i] for i in order]
        images, contexts = features.images[order], features.contexts[order]
        count = min(self.queries, len(keys))
        chosen = [i * len(keys) // count for i in range(count)]
        directions = {
            "text_to_image": search(contexts, images, chosen, self.top),
            "image_to_text": search(images, contexts, chosen, self.top),
        }
        shown = sorted({i for found in directions.values() for i in _items(found)})
        cards = self._gather([keys[i] for i in shown])
        if world()[0] == 0:
            items = {i: self._write_card(keys[i], cards[keys[i]], folder, n) for n, i in enumerate(shown)}
            folder.mkdir(parents=True, exist_ok=True)
            page = {"candidates": len(keys), "items": items, **directions}
            (folder / "gallery.json").write_text(json.dumps(page, indent=1) + "\n")
        self.cards = {}

    def _gather(self, keys: Sequence[Key]) -> dict[Key, Card]:
        """The cards of ``keys`` from whichever rank saw them."""
        parts = gather_objects({key: self.cards[key] for key in keys if key in self.cards})
        return {key: card for part in parts for key, card in part.items()}

    def _write_card(self, key: Key, card: Card, folder: Path, number: int) -> dict[str, Any]:
        path = folder / "gallery" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(card.pixels).save(path, quality=90)
        text = readable(card.context, self.tokenizer)
        return {"document": key[0], "image": key[1], "text": text, "file": f"gallery/{path.name}"}


def _items(found: list[dict[str, Any]]) -> Iterator[int]:
    for query in found:
        yield query["item"]
        yield from (item for item, _ in query["found"])


def search(queries: Tensor, gallery: Tensor, chosen: Sequence[int], top: int) -> list[dict[str, Any]]:
    """The nearest gallery rows of a few queries, in agreement with recall's ranks: the match loses ties.

    Args:
        queries: Features [N, E] or [N, Q, E]; row i matches gallery row i.
        gallery: Features [N, E] or [N, Q, E].
        chosen: Rows of ``queries`` to search for.
        top: Results a query.

    Returns:
        For each: ``item`` (the row), ``rank`` of its match (1 is best), and ``found``, the nearest rows as
        ``[row, cosine]``; the cosine is None where it is not finite.
    """
    ranks = ranks_of_match(queries, gallery).tolist()
    results = []
    for row in chosen:
        cosine = cosines(queries[row : row + 1], gallery)[0]
        scores = cosine.nan_to_num(nan=-2.0)
        scores[row] -= 2 * TIE
        nearest = torch.argsort(scores, descending=True, stable=True)[:top].tolist()
        found = [[i, round(float(cosine[i]), 4) if math.isfinite(cosine[i]) else None] for i in nearest]
        results.append({"item": row, "rank": ranks[row] + 1, "found": found})
    return results


def thumbnail(pixels: Tensor) -> np.ndarray:
    """Pixels [3, H, W], uint8 or normalised float (stretched to its range), as a small uint8 [h, w, 3]."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)


def readable(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of ids, each image in it as :data:`IMAGE_MARK`, other structural tokens left out."""
    structural, parts, words = structural_ids(tokenizer), [], []
    for token in [*ids, tokenizer.end_of_text]:
        if token not in structural:
            words.append(token)
            continue
        parts += [tokenizer.decode(words).strip()] if words else []
        parts += [IMAGE_MARK] if token == tokenizer.start_of_image else []
        words = []
    return " ".join(parts)
