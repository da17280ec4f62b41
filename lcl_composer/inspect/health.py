"""What a data set is like as a whole, from the layouts and images of a sample of its documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lcl_composer.convert.report import Distribution
from lcl_composer.data.image import decode_image
from lcl_composer.errors import DataError
from lcl_composer.inspect.duplicates import Duplicates
from lcl_composer.inspect.view import DocumentView

#: Bad documents that are named.
_NAMED = 10

#: What becomes of an image, in the order of the page.
FATES = {
    "pair, read": "in a pair, and read by the language model",
    "pair, not read": "in a pair; no text follows, so the language model does not read it",
    "not anchored": "read by the language model only: too little text before it",
    "unused": "not encoded: neither context nor text after it",
    "cut": "cut: does not fit in max_tokens",
}


@dataclass
class Health:
    """Counts over the documents given to :meth:`add`; memory does not grow with their number, but for the
    hashes of the images.

    Attributes:
        max_tokens: The context that documents are laid out for.
        documents: Documents counted, bad ones included.
        bad: Why training would skip documents, by kind.
        named: The first of them, as ``id: problem``.
        images: Images a document.
        pairs: Anchored images a document.
        tokens: Positions that run through the language model, a document.
        text_tokens: Text tokens a document, before anything is cut.
        targets: Generation targets.
        slots: Positions that hold image tokens.
        fates: Images by what becomes of them, keys of ``FATES``.
        drawn: Images without context only because they float and were drawn before their text.
        cut_documents: Documents that lose text or images at ``max_tokens``.
        cut_tokens: Text tokens lost.
        duplicates: Images that occur more than once.
    """

    max_tokens: int
    documents: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    images: Distribution = field(default_factory=Distribution)
    pairs: Distribution = field(default_factory=Distribution)
    tokens: Distribution = field(default_factory=Distribution)
    text_tokens: Distribution = field(default_factory=Distribution)
    targets: int = 0
    slots: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    drawn: int = 0
    cut_documents: int = 0
    cut_tokens: int = 0
    duplicates: Duplicates = field(default_factory=Duplicates)

    def add_broken(self, error: DataError) -> None:
        """Count a document whose record cannot be read."""
        self.documents += 1
        self._bad("record does not add up", str(error))

    def add(self, view: DocumentView, tokens_per_image: int) -> str:
        """Count a document; return why training would skip it, or an empty text."""
        layout = view.layout
        self.documents += 1
        self.images.add(len(view.document.images))
        self.pairs.add(int((layout.anchors >= 0).sum()))
        self.tokens.add(len(layout.tokens))
        self.text_tokens.add(view.text_tokens)
        self.targets += view.targets
        self.slots += tokens_per_image * int((layout.image_starts >= 0).sum())
        self.cut_documents += bool(view.cut)
        self.cut_tokens += layout.cut_tokens
        for row in view.images:
            read = row.state == "pair" and row.why == ""
            fate = {"pair": "pair, read" if read else "pair, not read", "unanchored": "not anchored"}
            self.fates[fate.get(row.state, row.state)] += 1
            self.drawn += row.state == "unanchored" and view.document.images[row.image].floats
        broken = self._add_images(view)
        if not len(layout.tokens):
            return self._bad("no text", f"{view.document.id}: nothing to learn from, it has no text")
        return self._bad("an image cannot be decoded", broken) if broken else ""

    def _add_images(self, view: DocumentView) -> str:
        """Count a document's images; return what is wrong with the first that training cannot decode."""
        used, problem = set(view.layout.images.tolist()), ""
        for index, encoded in enumerate(view.document.images):
            try:
                image = decode_image(encoded.data, f"{view.document.id}, image {index}")
            except DataError as error:
                problem = problem or (str(error) if index in used else "")
            else:
                self.duplicates.add(view.document.id, encoded.data, image)
        return problem

    def _bad(self, kind: str, problem: str) -> str:
        self.bad[kind] += 1
        if len(self.named) < _NAMED:
            self.named.append(problem)
        return problem

    @property
    def text_total(self) -> int:
        """Text tokens of all documents."""
        return self.text_tokens.total

    @property
    def images_seen(self) -> float:
        """Share of the images that reach a loss."""
        return 1 - (self.fates["cut"] + self.fates["unused"]) / max(1, self.images.total)

    @property
    def text_seen(self) -> float:
        """Share of the text tokens that reach a loss."""
        return 1 - self.cut_tokens / max(1, self.text_total)

    @property
    def context_used(self) -> float:
        """Share of ``max_tokens`` that a document takes up, on average."""
        return self.tokens.mean / self.max_tokens

    def findings(self) -> list[str]:
        """Return what stands out, in words, the greatest share first."""
        images, documents = max(1, self.images.total), max(1, self.documents)
        fixed = self.fates["not anchored"] - self.drawn
        seen = max(1, self.duplicates.images)
        facts = [
            (sum(self.bad.values()) / documents, 0.01, "of the documents would be skipped in training"),
            (1 - self.text_seen, 0.1, "of the text is cut at max_tokens"),
            (self.fates["cut"] / images, 0.1, "of the images are cut at max_tokens"),
            (fixed / images, 0.1, "of the images stand where they have no context: they form no pair"),
            (self.drawn / images, 0.6, "of the images were drawn before their text and form no pair"),
            (self.fates["unused"] / images, 0.05, "of the images feed no loss"),
            (self.duplicates.repeats / seen, 0.02, "of the images repeat another one"),
        ]
        found = [f"{share:.0%} {what}" for share, limit, what in sorted(facts, reverse=True) if share > limit]
        if self.context_used < 0.5:
            found.append(f"{self.context_used:.0%} of max_tokens is used by a document, on average")
        return found
