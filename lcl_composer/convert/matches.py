"""MMC4's records: which image belongs to which sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lcl_composer.convert.images import Rejected
from lcl_composer.convert.pairs import at_least
from lcl_composer.convert.report import ConversionReport
from lcl_composer.data.rng import sample_rng


@dataclass(frozen=True, slots=True)
class Match:
    """An image and the sentence it matches."""

    image_name: str
    sentence: int


@dataclass(frozen=True, slots=True)
class MMC4Record:
    """A web page: its sentences, and an entry of ``image_info`` and a row of similarities an image."""

    url: str
    sentences: list[str]
    images: list[Any]
    similarities: list[Any] | None


def read_record(record: dict[str, Any]) -> MMC4Record:
    """Return a page; sentences that are null become empty.

    Raises:
        Rejected: If a list is missing, or lists that run along with each other differ in length.
    """
    sentences, images = record.get("text_list"), record.get("image_info")
    if not isinstance(sentences, list) or not isinstance(images, list):
        raise Rejected("text_list or image_info missing")
    similarities = record.get("similarity_matrix")
    if isinstance(similarities, list):
        if len(similarities) != len(images):
            raise Rejected("lists of unequal length")
        if any(isinstance(row, list) and len(row) != len(sentences) for row in similarities):
            raise Rejected("lists of unequal length")
    texts = [sentence if isinstance(sentence, str) else "" for sentence in sentences]
    url = record.get("url")
    return MMC4Record(
        url if isinstance(url, str) else "",
        texts,
        images,
        similarities if isinstance(similarities, list) else None,
    )


def choose_images(
    page: MMC4Record,
    name: str,
    min_similarity: float,
    max_images: int | None,
    read: Callable[[str], bytes],
    report: ConversionReport,
) -> dict[int, bytes]:
    """Return the image of each sentence that has one.

    Of several images of one sentence those after the first in an order drawn by the document's id are left
    out; one that cannot be read leaves its place to the next.

    Args:
        page: The page.
        name: The document's id.
        min_similarity: The least similarity (``matched_sim``) of an image to its sentence.
        max_images: Sentences that may have an image, in reading order; None for no limit.
        read: Returns an image by its name or raises Rejected.
        report: Counts the images left out.
    """
    by_sentence: dict[int, list[Match]] = {}
    for _, match in _matches(page, name, report, min_similarity, _matched):
        by_sentence.setdefault(match.sentence, []).append(match)
    chosen: dict[int, bytes] = {}
    for sentence, rivals in sorted(by_sentence.items()):
        order = sample_rng(0, 0, name, f"image of sentence {sentence}").permutation(len(rivals))
        for index in order.tolist():
            try:
                if sentence in chosen:
                    raise Rejected("another image has its sentence")
                if max_images is not None and len(chosen) >= max_images:
                    raise Rejected(f"over {max_images} images")
                chosen[sentence] = read(rivals[index].image_name)
            except Rejected as reason:
                report.drop_image(str(reason), f"{name}: {rivals[index].image_name[:200]}")
    return chosen


def best_matches(
    page: MMC4Record, name: str, min_similarity: float, report: ConversionReport
) -> Iterator[tuple[int, Match]]:
    """Yield each image's place and the sentence most similar to it.

    That is the greatest of its row in ``similarity_matrix``: ``matched_text_index`` assigns all images at
    once, so it need not be the best one. It is taken where a page has no similarities, or lower ones.
    """
    return _matches(page, name, report, min_similarity, _best)


def _matches(
    page: MMC4Record,
    name: str,
    report: ConversionReport,
    min_similarity: float,
    match_of: Callable[[MMC4Record, int], tuple[Any, Any]],
) -> Iterator[tuple[int, Match]]:
    for place, entry in enumerate(page.images):
        image_name = entry.get("image_name") if isinstance(entry, dict) else None
        try:
            if not isinstance(image_name, str) or not image_name:
                raise Rejected("image_name missing")
            sentence, similarity = match_of(page, place)
            report.add_similarity(similarity)
            if not at_least(similarity, min_similarity):
                raise Rejected(f"similarity under {min_similarity:g}, or none")
            if type(sentence) is not int or not 0 <= sentence < len(page.sentences):
                raise Rejected("matched sentence missing")
            if not page.sentences[sentence].strip():
                raise Rejected("matched sentence empty")
            yield place, Match(image_name, sentence)
        except Rejected as reason:
            report.drop_image(str(reason), f"{name}: {str(image_name or place)[:200]}")


def _matched(page: MMC4Record, place: int) -> tuple[Any, Any]:
    entry = page.images[place]
    return entry.get("matched_text_index"), entry.get("matched_sim")


def _best(page: MMC4Record, place: int) -> tuple[Any, Any]:
    matched = _matched(page, place)
    row = page.similarities[place] if page.similarities is not None else None
    candidates = [matched, *enumerate(row if isinstance(row, list) else [])]
    numbers = [(sentence, value) for sentence, value in candidates if at_least(value, -math.inf)]
    return max(numbers, key=lambda candidate: float(candidate[1]), default=matched)
