"""What a model writes about held-out images: on all ranks, beside what people wrote, in a file to look at."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.captioned import QUESTION
from lcl_composer.data.collate import num_samples, split_batch
from lcl_composer.data.document import Text
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.evaluation import Evaluation
from lcl_composer.evaluation.gallery import thumbnail
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.quiet import device_of
from lcl_composer.evaluation.retrieval import to_device
from lcl_composer.evaluation.trial import check_documents
from lcl_composer.methods.caption import Caption
from lcl_composer.models.writer import Decoding, rooms
from lcl_composer.nodes import on_first_rank

if TYPE_CHECKING:
    from lcl_composer.methods.method import Method

#: Images of which a small picture is kept.
PICTURES = 24


@dataclass(frozen=True)
class Written:
    """What was written about an image.

    Attributes:
        id: The document's id.
        text: What the model wrote.
        texts: The texts of the document.
        pixels: The image, small, uint8 [h, w, 3]; None beyond the first :data:`PICTURES`.
    """

    id: str
    text: str
    texts: Sequence[str]
    pixels: np.ndarray | None


class Writing(Evaluation):
    """Writes about each document of ``data.eval`` and compares.

    Attributes:
        name: The evaluation's name in ``evaluation:``.
        file: Name of the file of what was written, and of the folder of pictures, in the run folder.

    Args:
        tokenizer: That of the run.
        decoding: How to write, values of :class:`Decoding`.
        max_documents: The first documents of ``data.eval`` alone, on any number of ranks; None: all.
        batch_size: Documents that a rank writes about at once.
    """

    name: ClassVar[str]
    file: ClassVar[str]

    def __init__(
        self, tokenizer: Tokenizer, decoding: dict[str, Any], max_documents: int | None, batch_size: int
    ) -> None:
        if batch_size < 1 or (max_documents is not None and max_documents < 1):
            raise ConfigError(
                f"evaluation.{self.name}: batch_size={batch_size}, max_documents={max_documents}; need >= 1"
            )
        try:
            self.decoding = Decoding(**decoding)
        except ConfigError as error:
            raise ConfigError(f"evaluation.{self.name}: {error}") from error
        self.tokenizer = tokenizer
        self.max_documents, self.batch_size = max_documents, batch_size

    def shown(self, row: Written) -> tuple[str, list[str]]:
        """What a page says below a picture: what the model wrote, and what people did."""
        return row.text, list(row.texts)

    def say_room(self, model: Caption) -> None:
        """Say on the first rank if even the shortest prompt leaves fewer tokens than ``max_new_tokens``."""
        ids = self.tokenizer.encode(model.prompt.replace(QUESTION, "")) if model.prompt else []
        prompt = model.encoder.tokens_per_image + 1 + len(ids)
        room = model.language_model.max_position_embeddings - prompt + 1
        if room < self.decoding.max_new_tokens and world()[0] == 0:
            print(
                f"note: evaluation.{self.name}: max_new_tokens is {self.decoding.max_new_tokens}, but behind "
                f"image and prompt the language model has positions for {room} tokens; texts end there",
                flush=True,
            )

    def check(self, held_out: Iterable[PackedBatch]) -> None:
        """Raise DataError if there is no document to write about."""
        check_documents(held_out, self.name)

    @abstractmethod
    def compare(self, written: Sequence[Written], folder: Path) -> dict[str, Any]:
        """The result, on the first rank; ``written`` is not empty."""

    def measure(
        self, model: Method, held_out: Iterable[PackedBatch] | None, folder: Path
    ) -> dict[str, Any] | None:
        """Write on all ranks, compare on the first.

        Of documents with one id the first is measured; how many others there are is said, and how many texts
        end at the last position.

        Raises:
            DataError: If no document can be written about.
        """
        if held_out is None:
            return None
        assert isinstance(model, Caption), "start() checks it"
        rows, full = self._write(model, held_out)

        def compare() -> dict[str, Any]:
            first = {row[0]: row for row in reversed(rows)}
            if not first:
                raise DataError(f"evaluation.{self.name}: data.eval holds no document to write about")
            texts = texts_of(held_out, first)
            kept = [row for row in rows if first[row[0]] is row]
            result = self.compare([Written(n, text, texts[n], small) for n, text, small in kept], folder)
            return {**result, "repeated_ids": len(rows) - len(kept), "ended_at_last_position": full}

        return on_first_rank(compare)

    def _write(
        self, model: Caption, held_out: Iterable[PackedBatch]
    ) -> tuple[list[tuple[str, str, np.ndarray | None]], int]:
        """Id, text and picture of each document, in the order of ``data.eval``, on all ranks.

        And how many texts end at the last position of the language model, before ``max_new_tokens``.
        """
        (rank, ranks), device, seen, full = world(), device_of(model), 0, 0
        found: list[tuple[tuple[int, int, int], str, str, np.ndarray | None]] = []
        for number, batch in enumerate(held_out):
            images = iter(batch["pixel_values"])
            parts = split_batch(batch, self.batch_size)
            ids = [i for p in parts for i in model.write(to_device(p, device), self.tokenizer, self.decoding)]
            left = [room for part in parts for room in rooms(model.language_model, part)]
            full += sum(len(i) == n < self.decoding.max_new_tokens for i, n in zip(ids, left, strict=True))
            for place, (name, length) in enumerate(zip(batch["ids"], batch["lengths"], strict=True)):
                if length:
                    pixels = next(images)
                    small = thumbnail(pixels) if len(found) < PICTURES else None
                    text = " ".join(self.tokenizer.decode(ids[place]).split())
                    found.append(((number, rank, place), name, text, small))
            seen += ranks * num_samples(batch)
            if self.max_documents is not None and seen >= self.max_documents:
                break
        gathered = gather_objects((found, full))
        whole = sorted((row for part, _ in gathered for row in part), key=lambda row: row[0])
        return [row[1:] for row in whole[: self.max_documents]], sum(count for _, count in gathered)

    def left_out(self, result: dict[str, Any]) -> str:
        """What a note says of texts that were cut and documents that were passed over; "" for nothing."""
        said = ""
        if count := result.get("ended_at_last_position"):
            said += f"; {count} texts end at the language model's last position, before max_new_tokens"
        if count := result.get("repeated_ids"):
            said += f"; left out: {count} documents with the id of another"
        return said

    def keep(self, written: Sequence[Written], lines: Sequence[dict[str, Any]], folder: Path) -> None:
        """Write a line for each, pictures of the first ones, and ``captions.json``, which pages read.

        Args:
            written: What was written.
            lines: What is to be said of each, after its id.
            folder: The run folder.
        """
        (folder / self.file).mkdir(parents=True, exist_ok=True)
        places, cards = {}, []
        for number, row in enumerate(written[:PICTURES]):
            if row.pixels is not None:
                place = places[row.id] = f"{self.file}/{number:03d}.jpg"
                Image.fromarray(row.pixels).save(folder / place, quality=90)
                text, texts = self.shown(row)
                cards.append({"id": row.id, "file": place, "text": text, "references": texts})
        (folder / "captions.json").write_text(json.dumps(cards, ensure_ascii=False, indent=1), "utf-8")
        with open(folder / f"{self.file}.jsonl", "w", encoding="utf-8") as file:
            for row, line in zip(written, lines, strict=True):
                picture = {"image": places[row.id]} if row.id in places else {}
                file.write(json.dumps({"id": row.id, **line, **picture}, ensure_ascii=False) + "\n")


def texts_of(held_out: Any, names: Collection[str]) -> dict[str, list[str]]:
    """The texts of some documents of a loader by id, as they were written; read until all are found.

    Args:
        held_out: The loader of ``data.eval``, whose batches hold the one text that was drawn, in tokens.
        names: Ids of documents in it.
    """
    missing, found = set(names), {}
    for index in range(held_out.dataset.num_samples):
        if not missing:
            break
        document = held_out.dataset.document(index)
        if document.id in missing:
            found[document.id] = [s.text for s in document.segments if isinstance(s, Text)]
            missing.remove(document.id)
    return found
