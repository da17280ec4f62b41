"""The progress bar of a conversion."""

from __future__ import annotations

import time

from tqdm import tqdm


class Progress:
    """A bar over the parts, with the documents read so far and how many a second.

    Args:
        kind: What is converted.
        parts: Number of parts.
        done: How many were finished before.
        show: Whether there is a bar at all.
    """

    def __init__(self, kind: str, parts: int, done: int, show: bool) -> None:
        self._bar = tqdm(total=parts, initial=done, desc=kind, unit="part", disable=not show)
        self._documents = 0
        self._started = self._shown = time.monotonic()

    def count_part(self) -> None:
        """Count a part that is finished."""
        self._bar.update()

    def count_document(self) -> None:
        """Count a document that was read."""
        self.show_documents(self._documents + 1)

    def show_documents(self, documents: int) -> None:
        """Set the number of documents read; it is drawn a few times a second."""
        now = time.monotonic()
        if not self._documents:
            self._started = now  # the workers have started only now
        self._documents = documents
        if now - self._shown > 0.2 and now > self._started:
            self._shown = now
            rate = documents / (now - self._started)
            self._bar.set_postfix_str(f"{documents:,} documents, {rate:,.0f} documents/s")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
