"""What a source takes of its documents."""

from __future__ import annotations

from lcl_composer.data.document import Document, Image
from lcl_composer.data.sources import ShardSet
from lcl_composer.data.words import has_words


def filter_document(document: Document, source: ShardSet) -> Document | None:
    """Return what a source takes of a document, or None if it passes it over."""
    images = [i for i, s in enumerate(document.segments) if isinstance(s, Image)]
    if len(images) < source.min_images or not has_words(document, source.min_words):
        return None
    if source.max_images is None or len(images) <= source.max_images:
        return document
    beyond = set(images[source.max_images :])
    kept = tuple(s for i, s in enumerate(document.segments) if i not in beyond)
    return Document(document.id, document.source, kept)
