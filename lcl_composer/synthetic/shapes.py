"""A deterministic source of interleaved documents about pictures of shapes, for demos and tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from lcl_composer.data.document import Document, Image, Segment, Text
from lcl_composer.data.folders import whole_folder
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.synthetic.classes import write_probe_images
from lcl_composer.synthetic.scenes import Scene, draw_scene, render
from lcl_composer.synthetic.text import after, before, opening, question

#: Raised whenever the same settings give other documents, so that folders of old ones are made anew.
_VERSION = 1
#: What a folder of generated documents was made with.
SETTINGS_FILE = "generator.json"


class Picture(NamedTuple):
    """A scene and what its document says of it, before it and after."""

    scene: Scene
    before: str
    after: str


class DocumentGenerator(Protocol):
    """A source of made-up documents. Equal settings give equal documents, always and everywhere."""

    def __len__(self) -> int:
        """Return how many documents it makes."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return all that the documents depend on, as JSON values."""
        ...

    def documents(self) -> Iterator[Document]:
        """Yield the documents, in a fixed order."""
        ...

    def texts(self) -> Iterator[str]:
        """Yield what a tokenizer is trained on, without drawing."""
        ...

    def text_settings(self) -> dict[str, Any]:
        """Return all that :meth:`texts` depend on, as JSON values."""
        ...

    def probe_settings(self) -> dict[str, Any]:
        """Return all that the probe's pictures depend on, as JSON values."""
        ...

    def write_probe(self, folder: str) -> None:
        """Write labelled pictures of the same kind as ImageFolders ``train`` and ``val``, for probes."""
        ...


class ShapesGenerator:
    """Interleaved documents about pictures of coloured shapes.

    The text before a picture announces it by number, size, colour, shape, place and background (a group of
    objects may be left out); the text after it tells what has to be read off it. The splits share no
    combination of attributes (:func:`lcl_composer.synthetic.scenes.split_of`), so a held-out
    picture or description is never one of training.

    Args:
        documents: Number of documents.
        image_size: Side of the pictures in pixels, 16 or more.
        seed: Other seeds give other documents of the same kind.
        split: ``train`` or ``held_out``.
        min_images: Fewest pictures a document.
        max_images: Most pictures a document; the number is drawn evenly between the two.
        max_groups: Most groups of like objects a picture, 1 to 4; more make it harder to learn.
        floating: Pictures go before or after the text that follows them, drawn each epoch, as in MMC4.
        pairs: Yield the pictures of these documents one by one, each floating around all that its document
            says of it: for methods on pairs, from the same pictures and sentences.
        questions: Yield them one by one, each with a question about it and the answer.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self,
        documents: int,
        image_size: int = 48,
        seed: int = 0,
        split: str = "train",
        min_images: int = 1,
        max_images: int = 3,
        max_groups: int = 3,
        floating: bool = False,
        pairs: bool = False,
        questions: bool = False,
    ):
        if split not in ("train", "held_out"):
            raise ConfigError(f"shapes: split is {split!r}; use 'train' or 'held_out'")
        if documents < 1 or image_size < 16 or not 1 <= min_images <= max_images or not 1 <= max_groups <= 4:
            raise ConfigError(
                f"shapes: documents={documents}, image_size={image_size}, min_images={min_images}, "
                f"max_images={max_images}, max_groups={max_groups}; need documents >= 1, image_size >= 16, "
                "1 <= min_images <= max_images, 1 <= max_groups <= 4"
            )
        self.documents_count = documents
        self.image_size = image_size
        self.seed = seed
        self.split = split
        self.min_images = min_images
        self.max_images = max_images
        self.max_groups = max_groups
        self.floating = floating
        if pairs and questions:
            raise ConfigError("shapes: pairs and questions are two kinds of documents; set one of them")
        self.pairs, self.questions = pairs, questions

    def settings(self) -> dict[str, Any]:
        """Return all that the documents depend on, as JSON values."""
        questions = {"questions": True} if self.questions else {}  # folders of before know no questions
        return {**self.text_settings(), "pairs": self.pairs, **questions}

    def text_settings(self) -> dict[str, Any]:
        """Return the settings without ``pairs``, so that documents and their pairs share a tokenizer."""
        names = (
            "documents_count",
            "image_size",
            "seed",
            "split",
            "min_images",
            "max_images",
            "max_groups",
            "floating",
        )
        return {"generator": "shapes", "version": _VERSION, **{name: getattr(self, name) for name in names}}

    def documents(self) -> Iterator[Document]:
        """Yield the documents, ids ``shapes-<split>-000000`` and up, or its pictures, ``#0`` and up."""
        source = f"generated shapes, seed {self.seed}"
        for index in range(self.documents_count):
            (start, pictures), rng = self._plan(index), self._stream(index, "render")
            drawn = [render(picture.scene, self.image_size, rng) for picture in pictures]
            name = f"shapes-{self.split}-{index:06d}"
            if not self.pairs and not self.questions:
                yield Document(name, source, self._interleaved(_texts(start, pictures), drawn))
                continue
            rng = self._stream(index, "questions")
            for number, (picture, data) in enumerate(zip(pictures, drawn, strict=True)):
                if self.questions:
                    asked, answer = question(picture.scene, rng)
                    segments = (Image(data), Text(asked), Text(answer))
                else:
                    segments = (Image(data, floats=True), Text(f"{picture.before} {picture.after}"))
                yield Document(f"{name}#{number}", source, segments)

    def __len__(self) -> int:
        """How many :meth:`documents` yields."""
        if not self.pairs and not self.questions:
            return self.documents_count
        return sum(len(self._plan(index)[1]) for index in range(self.documents_count))

    def texts(self) -> Iterator[str]:
        """Yield the text segments of the interleaved documents without drawing, to train a tokenizer on."""
        for index in range(self.documents_count):
            yield from _texts(*self._plan(index))

    def probe_settings(self) -> dict[str, Any]:
        """Return all that the probe's pictures depend on, as JSON values."""
        return {"generator": "shapes", "version": _VERSION, "image_size": self.image_size, "seed": self.seed}

    def write_probe(self, folder: str) -> None:
        """Write labelled pictures, see :func:`lcl_composer.synthetic.classes.write_probe_images`."""
        write_probe_images(folder, image_size=self.image_size, seed=self.seed)

    def _stream(self, index: int, purpose: str) -> Random:
        # A text key: seeded through SHA-512, equal in every process and Python version.
        return Random(f"shapes/{_VERSION}/{self.seed}/{self.split}/{index}/{purpose}")

    def _plan(self, index: int) -> tuple[str, list[Picture]]:
        """Return how document ``index`` starts, and its pictures."""
        rng = self._stream(index, "plan")
        start, pictures = opening(rng), []
        for position in range(rng.randint(self.min_images, self.max_images)):
            scene = draw_scene(rng, self.split, self.max_groups)
            sentence, hidden = before(scene, position, rng)
            pictures.append(Picture(scene, sentence, after(scene, hidden, rng)))
        return start, pictures

    def _interleaved(self, texts: list[str], drawn: list[bytes]) -> tuple[Segment, ...]:
        """Return texts and pictures in turn, text first and last."""
        segments: list[Segment] = [Text(texts[0])]
        for data, text in zip(drawn, texts[1:], strict=True):
            segments += [Image(data, self.floating), Text(text)]
        return tuple(segments)


def _texts(start: str, pictures: list[Picture]) -> list[str]:
    """Return the text segments of a document, one more than it has pictures."""
    befores = [picture.before for picture in pictures]
    between = [f"{picture.after} {text}" for picture, text in zip(pictures, befores[1:], strict=False)]
    return [start + befores[0], *between, pictures[-1].after]


def generate_documents(generator: DocumentGenerator, out: str, *, progress: bool = True) -> None:
    """Write a generator's documents to the MDS folder ``out``, unless they are there already.

    They are written beside it and moved in place at the end, so a killed run leaves nothing that looks
    finished. A folder made with other settings is made anew. One process (local rank 0) should call this.

    Raises:
        DataError: If ``out`` holds something that no generator made.
    """
    target, settings = Path(out), generator.settings()
    if target.exists() and any(target.iterdir()):
        if not (target / SETTINGS_FILE).is_file():
            raise DataError(f"{out}: holds files that no generator made; choose another folder or empty it")
        if json.loads((target / SETTINGS_FILE).read_text()) == settings:
            return
    with whole_folder(target, replace=True) as partial:
        with DocumentWriter(str(partial)) as writer:
            total, off = len(generator), None if progress else True  # None: off in a file
            for document in tqdm(generator.documents(), "documents", total, unit="doc", disable=off):
                writer.write(document)
        (partial / SETTINGS_FILE).write_text(json.dumps(settings, indent=2))
