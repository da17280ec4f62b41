"""Text and images in reading order -> the segments of a Document."""

from __future__ import annotations

from collections.abc import Callable

from lcl_composer.convert.images import Rejected
from lcl_composer.convert.report import ConversionReport
from lcl_composer.data.document import Image, Segment, Text


class Assembler:
    """Puts fixed images and texts in a row; texts that become neighbours are joined.

    Args:
        name: The document, for naming an image that is left out.
        max_images: Images beyond this many are left out; None for no limit.
        report: Counts those.
    """

    def __init__(self, name: str, max_images: int | None, report: ConversionReport) -> None:
        self.segments: list[Segment] = []
        self._name = name
        self._max_images = max_images
        self._images = 0
        self._report = report

    def text(self, text: str, joint: str = "\n\n") -> None:
        """Append a text; ``joint`` goes between it and the text before, if no image does."""
        if self.segments and isinstance(self.segments[-1], Text):
            self.segments[-1] = Text(f"{self.segments[-1].text}{joint}{text}")
        else:
            self.segments.append(Text(text))

    def image(self, label: str, read: Callable[[], bytes]) -> None:
        """Append an image, or count why not; ``label`` says which."""
        try:
            if self._max_images is not None and self._images >= self._max_images:
                raise Rejected(f"over {self._max_images} images")
            self.segments.append(Image(read()))
            self._images += 1
        except Rejected as reason:
            self._report.drop_image(str(reason), f"{self._name}: {label[:200]}")
