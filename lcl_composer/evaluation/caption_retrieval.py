"""Retrieval of images and of their captions, several an image: the protocols of COCO and Flickr30k."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.document import Document, Text
from lcl_composer.data.image import decode_image, eval_transform
from lcl_composer.data.interleave import Layout
from lcl_composer.data.tokenizer import Tokenizer, structural_ids
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.evaluation import Evaluation, Row
from lcl_composer.evaluation.gallery import CONTEXT_TOKENS, Card, Gallery, thumbnail
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.metrics import caption_ranks, chance_at_k
from lcl_composer.evaluation.outcomes import Outcomes, Tally, write_outcomes
from lcl_composer.evaluation.quiet import device_of, undisturbed
from lcl_composer.evaluation.retrieval import PairedFeatures
from lcl_composer.evaluation.texts import check_sides, text_features
from lcl_composer.evaluation.trial import check_documents
from lcl_composer.models.finite import check_finite

if TYPE_CHECKING:
    from lcl_composer.data.stream import DocumentStream
    from lcl_composer.methods.method import Method

#: Cut-offs of the recall.
KS = (1, 5, 10)


@dataclass
class CaptionedImages:
    """Images with their captions, and the features of both.

    Attributes:
        ids: Names of the N images.
        images: Features [N, E], or [N, Q, E].
        captions: Features [M, E].
        owners: The image of each caption, [M] int64.
        skipped: Documents left out, by reason; captions without a token.
    """

    ids: list[str]
    images: Tensor
    captions: Tensor
    owners: Tensor
    skipped: dict[str, int] = field(default_factory=dict)


def captions_of(document: Document, tokenizer: Tokenizer, most: int | None) -> list[str]:
    """The first captions of a document, those left out that are blank or have no token.

    Raises:
        DataError: If it is not one image and its captions.
    """
    texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
    if len(document.images) != 1:
        raise DataError(
            f"document {document.id!r}: {len(document.images)} images, not one with its captions, as lcl "
            "convert coco, flickr30k or captions make them"
        )
    structural = structural_ids(tokenizer)
    return [text for text in texts if text.strip() and set(tokenizer.encode(text)) - structural][:most]


class CaptionRetrieval(Evaluation):
    """TR@k and IR@k on ``data.eval``: text retrieval by an image, and image retrieval by a caption.

    An image is right if one of its captions is among the k nearest of all captions; a caption if its image is
    among the k nearest of all images (Karpathy and Fei-Fei, CVPR 2015, section 4.1). On COCO's ``test`` these
    are the 5k numbers, on Flickr30k's the 1k numbers. Every method with a text side can be measured, trained
    for it or not. Documents are read as they were written, so that all captions count.

    Args:
        tokenizer: Of the run.
        layout: The method's.
        image_size: Side of the images in pixels.
        max_captions: Captions of an image that take part, the first ones: COCO's have 5 to 7, of which the
            protocol takes 5; null: all.
        max_images: Images to search among; null: all.
        batch_size: Images a forward.

    Raises:
        ConfigError: If a number is below 1.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: Layout,
        image_size: int,
        max_captions: int | None = 5,
        max_images: int | None = None,
        batch_size: int = 64,
    ):
        if min(max_captions or 1, max_images or 1, batch_size) < 1 or 0 in (max_captions, max_images):
            raise ConfigError("caption_retrieval: max_captions, max_images and batch_size must be at least 1")
        self.tokenizer, self.layout, self.image_size = tokenizer, layout, image_size
        self.max_captions, self.max_images, self.batch_size = max_captions, max_images, batch_size
        self.gallery = Gallery(tokenizer)

    def start(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts no images with texts."""
        check_sides(model, "evaluation.caption_retrieval")

    def check(self, held_out: Iterable[PackedBatch]) -> None:
        """Raise DataError if there is no image with a caption."""

        def fits(stream: DocumentStream, number: int) -> str:
            try:
                document = stream.document(number)
                found = captions_of(document, self.tokenizer, self.max_captions)
                if found:
                    decode_image(document.images[0].data, f"document {document.id!r}, image 0")
            except DataError as error:
                return str(error)
            return "" if found else f"document {document.id!r}: no caption has a token"

        check_documents(held_out, "caption_retrieval", fits)

    def measure(
        self, model: Method, held_out: Iterable[PackedBatch] | None, folder: Path
    ) -> dict[str, Any] | None:
        """Recalls in 0..1 beside chance; outcomes and a gallery of first captions go to the run folder."""
        if held_out is None:
            return None
        stream: DocumentStream = held_out.dataset  # type: ignore[attr-defined]
        with undisturbed(model):
            found = self._collect(model, stream)
        if not found.ids:
            raise DataError("evaluation.caption_retrieval: data.eval has no image with a caption")
        self._write_gallery(found, folder)
        ranks = caption_ranks(found.images, found.captions, found.owners)
        outcomes = outcomes_of(found, *ranks)
        if world()[0] == 0:
            write_outcomes(outcomes, folder, "caption_retrieval")
        counts = torch.bincount(found.owners).tolist()
        return {
            **{name: tally.value for name, tally in outcomes.tallies.items()},
            **chances(counts),
            "images": len(found.ids),
            "captions": len(found.captions),
            "skipped": found.skipped,
        }

    def _collect(self, model: Method, stream: DocumentStream) -> CaptionedImages:
        """Features of this rank's documents, every W-th, joined over ranks in the documents' order."""
        rank, size = world()
        total = min(stream.num_samples, self.max_images or stream.num_samples)
        reasons = (
            "images without a caption",
            "images that cannot be read",
            "documents that are not one image with captions",
        )
        skipped: dict[str, int] = dict.fromkeys(reasons, 0)
        parts = []
        mine = range(rank, total, size)
        for first in range(0, len(mine), self.batch_size):
            parts += self._features(model, stream, mine[first : first + self.batch_size], skipped)
        gathered = gather_objects((parts, skipped))
        rows = sorted((row for part, _ in gathered for row in part), key=lambda row: row[0])
        counts = {reason: sum(part[reason] for _, part in gathered) for reason in skipped}
        if not rows:
            return CaptionedImages([], torch.empty(0, 1), torch.empty(0, 1), torch.empty(0), counts)
        owners = [torch.full((len(row[3]),), number) for number, row in enumerate(rows)]
        images, captions = torch.stack([row[2] for row in rows]), torch.cat([row[3] for row in rows])
        return CaptionedImages([row[1] for row in rows], images, captions, torch.cat(owners), counts)

    def _features(
        self, model: Method, stream: DocumentStream, numbers: Sequence[int], skipped: dict[str, int]
    ) -> list[tuple[int, str, Tensor, Tensor]]:
        """Number, id, image feature and caption features [C, E] of each document that can be measured."""
        kept: list[tuple[int, Document, Tensor, list[str]]] = []
        for number in numbers:
            try:
                document = stream.document(number)
                captions = captions_of(document, self.tokenizer, self.max_captions)
            except DataError:
                skipped["documents that are not one image with captions"] += 1
                continue
            if not captions:
                skipped["images without a caption"] += 1
                continue
            try:
                image = decode_image(document.images[0].data, f"document {document.id!r}, image 0")
                pixels = eval_transform(image, self.image_size)
            except DataError:
                skipped["images that cannot be read"] += 1
                continue
            self._keep_card(document, pixels, captions[0])
            kept.append((number, document, pixels, captions))
        if not kept:
            return []
        pixels = torch.stack([row[2] for row in kept]).to(device_of(model))
        images = model.image_features(pixels).float().cpu()
        check_finite("features of data.eval", {"images": images})
        texts = text_features(model, self.layout, [text for row in kept for text in row[3]])
        pieces = texts.split([len(row[3]) for row in kept])
        return [
            (number, document.id, image, captions)
            for (number, document, *_), image, captions in zip(kept, images, pieces, strict=True)
        ]

    def _keep_card(self, document: Document, pixels: Tensor, caption: str) -> None:
        """Remember what the gallery may show of a document."""
        ids = self.tokenizer.encode(caption)[:CONTEXT_TOKENS]
        self.gallery.cards[document.id, 0] = Card(thumbnail(pixels), ids)

    def _write_gallery(self, found: CaptionedImages, folder: Path) -> None:
        """Each image with its first caption."""
        owners = found.owners.tolist()
        firsts = [owners.index(number) for number in range(len(found.ids))]
        keys = [(name, 0) for name in found.ids]
        self.gallery.write(PairedFeatures(keys, found.images, found.captions[firsts]), folder)

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """Recall at 1, both ways."""
        rows = []
        for way, label in (("image_to_text", "Image to text TR@1"), ("text_to_image", "Text to image IR@1")):
            chance, reached = result[f"chance/{way}/recall@1"], result[f"{way}/recall@1"]
            factor = f"{reached / chance:.1f} x chance"
            rows.append(Row(label, f"{chance:.2%} by chance", f"{reached:.2%}", factor))
        return rows

    def note(self, result: dict[str, Any]) -> str:
        """How many were searched, and what was left out."""
        left_out = [f"{count} {reason}" for reason, count in result["skipped"].items() if count]
        left_out_text = f"; left out: {', '.join(left_out)}" if left_out else ""
        return f"TR, IR: {result['images']:,} images with {result['captions']:,} captions{left_out_text}"


def outcomes_of(found: CaptionedImages, image_ranks: Tensor, caption_ranks: Tensor) -> Outcomes:
    """Recalls by image: whether it found a caption of its own, and how many of its captions found it."""
    counts = torch.bincount(found.owners, minlength=len(found.ids))
    tallies = {}
    for k in KS:
        tallies[f"image_to_text/recall@{k}"] = Tally((image_ranks < k).float().tolist())
        hits = torch.zeros(len(found.ids)).index_add(0, found.owners, (caption_ranks < k).float())
        tallies[f"text_to_image/recall@{k}"] = Tally(hits.tolist(), counts.tolist())
    return Outcomes(found.ids, tallies)


def chances(counts: Sequence[int]) -> dict[str, float]:
    """Recalls of a random order, for images with so many captions each.

    An image with c of M captions misses all of its own among k with C(M - c, k) / C(M, k).
    """
    total, found = sum(counts), {}
    for k in KS:
        missed = [comb(total - count, k) / comb(total, k) if k <= total else 0.0 for count in counts]
        found[f"chance/image_to_text/recall@{k}"] = 1 - sum(missed) / len(missed)
        found[f"chance/text_to_image/recall@{k}"] = chance_at_k(len(counts), k)
    return found
