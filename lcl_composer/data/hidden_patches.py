"""Which patches of an image are hidden from the encoder: blocks of neighbours, as BEiT draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Patches of a block at least, while so many are missing; height over width at least, and its inverse at most
#: (BEiT, arXiv 2106.08254, section 2.3).
_LEAST_PATCHES, _LEAST_RATIO = 16, 0.3
#: Blocks refused in a row before single patches are drawn; BEiT's code tries a block so often.
_TRIES = 10


@dataclass(frozen=True)
class HiddenPatches:
    """Draws equally many patches of each image, in blocks.

    Block-wise masking (BEiT, arXiv 2106.08254, algorithm 1): until enough patches are hidden, a block of an
    area and an aspect ratio drawn anew is hidden at a place drawn anew. As in BEiT's code, a block that does
    not fit, hides nothing new or hides too many is refused; as in EVA's, single patches make up for what
    blocks leave missing, so that all images hide the same number. The area is drawn up to what is missing,
    the logarithm of the aspect ratio evenly.

    Attributes:
        rows: Patches of an image from top to bottom.
        columns: Patches from left to right.
        count: Patches to hide, above 0 and below their number.
    """

    rows: int
    columns: int
    count: int

    @classmethod
    def share(cls, grid: tuple[int, int], ratio: float) -> HiddenPatches:
        """So many that they come nearest to a share of the patches, one at least, and one is left."""
        patches = grid[0] * grid[1]
        return cls(*grid, min(max(1, round(ratio * patches)), patches - 1))

    def draw(self, images: int, rng: np.random.Generator) -> np.ndarray:
        """Numbers of the hidden patches, row by row from the top left, ascending: int64 [images, count]."""
        hidden = [np.flatnonzero(self._draw(rng)) for _ in range(images)]
        return np.array(hidden, dtype=np.int64).reshape(images, self.count)

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Which patches of one image are hidden, bool [rows, columns]."""
        hidden = np.zeros((self.rows, self.columns), dtype=bool)
        missing, refused = self.count, 0
        while missing and refused < _TRIES:
            block = self._draw_block(hidden, missing, rng)
            new = 0 if block is None else block.size - np.count_nonzero(block)
            if block is not None and 0 < new <= missing:
                block[...] = True
                missing, refused = missing - new, 0
            else:
                refused += 1
        hidden.flat[rng.permutation(np.flatnonzero(~hidden))[:missing]] = True
        return hidden

    def _draw_block(self, hidden: np.ndarray, missing: int, rng: np.random.Generator) -> np.ndarray | None:
        """A view of a block of the patches; None if it is larger than the image."""
        area = rng.uniform(min(_LEAST_PATCHES, missing), missing)
        ratio = math.exp(rng.uniform(math.log(_LEAST_RATIO), -math.log(_LEAST_RATIO)))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if rows > self.rows or columns > self.columns:
            return None
        top, left = rng.integers(self.rows - rows + 1), rng.integers(self.columns - columns + 1)
        return hidden[top : top + rows, left : left + columns]
