"""MMC4: sentences of web pages with images matched to them -> Documents, or pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lcl_composer.convert.encoding import decode_text
from lcl_composer.convert.files import parse_json
from lcl_composer.convert.long_documents import Interleaved
from lcl_composer.convert.matches import MMC4Record, best_matches, choose_images, read_record
from lcl_composer.convert.mmc4_shards import Shards
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Rejected
from lcl_composer.convert.text import caption_text, one_line
from lcl_composer.data.document import Document, Image, Segment, Text


@dataclass(frozen=True, kw_only=True)
class MMC4(Interleaved, Shards):
    """MMC4 in all published forms: a document is its sentences, images floating around those they match.

    An image stands right before its sentence and is drawn before or after it anew every epoch. Of several
    images of one sentence one is drawn at random, by the document's id. Sentences without an image are
    joined with their neighbours.

    Args:
        max_images: Images beyond this many, in reading order, are left out; None for no limit.
    """

    max_images: int | None = 6

    kind: ClassVar[str] = "mmc4"

    def samples(self, name: str, record: tuple[int, bytes], report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a line."""
        shard, page = record[0], read_record(parse_json(decode_text(record[1], name, report)))

        def read(image_name: str) -> bytes:
            return self.read_named(shard, image_name)

        images = choose_images(page, name, self.min_similarity, self.max_images, read, report)
        yield Converted(Document(name, page.url or name, _interleave(page, images)), name)


@dataclass(frozen=True, kw_only=True)
class MMC4Pairs(Shards):
    """MMC4-Pair, the paper's comparison: each image of MMC4 with the sentence of its page it matches best.

    One document a pair; the image floats, so it is drawn before or after its sentence anew every epoch. A
    page without a pair counts as one document that was dropped. Pairs of a page are held out together.

    Args:
        max_images: Pairs of a page beyond this many, in the order of the images; None for no limit.
    """

    kind: ClassVar[str] = "mmc4-pairs"

    def samples(self, name: str, record: tuple[int, bytes], report: ConversionReport) -> Iterator[Converted]:
        """Yield the pairs of a line."""
        shard, page = record[0], read_record(parse_json(decode_text(record[1], name, report)))
        pairs = 0
        for place, match in best_matches(page, name, self.min_similarity, report):
            try:
                if self.max_images is not None and pairs >= self.max_images:
                    raise Rejected(f"over {self.max_images} images")
                caption = caption_text(page.sentences[match.sentence])
                image = Image(self.read_named(shard, match.image_name), floats=True)
            except Rejected as reason:
                report.drop_image(str(reason), f"{name}: {match.image_name[:200]}")
                continue
            pairs += 1
            document = Document(f"{name}/{place}", page.url or name, (image, Text(caption)))
            yield Converted(document, name)
        if not pairs:
            raise Rejected("no image")


def _interleave(page: MMC4Record, images: dict[int, bytes]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    waiting: list[str] = []  # sentences without an image

    def flush() -> None:
        if waiting:
            segments.append(Text(" ".join(waiting)))
            waiting.clear()

    for number, sentence in enumerate(page.sentences):
        if number in images:
            flush()
            segments += [Image(images[number], floats=True), Text(one_line(sentence))]
        elif text := one_line(sentence):
            waiting.append(text)
    flush()
    return tuple(segments)
