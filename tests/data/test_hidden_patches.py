"""Block-wise masking: always as many patches, in blocks, and other ones in another draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcl_composer.data.hidden_patches import HiddenPatches


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 16), columns=st.integers(2, 16), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 99)
)
def test_every_image_hides_the_share(rows: int, columns: int, ratio: float, seed: int) -> None:
    patches = HiddenPatches.share((rows, columns), ratio)
    drawn = patches.draw(2, np.random.default_rng(seed))
    assert drawn.shape == (2, patches.count)
    assert drawn.min() >= 0
    assert drawn.max() < rows * columns
    assert (np.diff(drawn, axis=1) > 0).all()
    assert abs(patches.count - ratio * rows * columns) <= 1
    assert 0 < patches.count < rows * columns


def test_the_same_draw_hides_the_same_and_images_differ() -> None:
    patches = HiddenPatches.share((14, 14), 0.4)
    one, again, other = (patches.draw(2, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])
    assert patches.count == 78
    assert patches.draw(0, np.random.default_rng(0)).shape == (0, 78)


def neighbours(hidden: np.ndarray) -> float:
    """Pairs of hidden patches side by side or above one another, for each hidden patch."""
    grid = np.zeros(196, dtype=bool)
    grid[hidden] = True
    grid = grid.reshape(14, 14)
    return float((grid[1:] & grid[:-1]).sum() + (grid[:, 1:] & grid[:, :-1]).sum()) / len(hidden)


def test_hidden_patches_stand_in_blocks_anywhere() -> None:
    drawn = HiddenPatches.share((14, 14), 0.4).draw(400, np.random.default_rng(0))
    alone = np.random.default_rng(0).permuted(np.tile(np.arange(196), (50, 1)), axis=1)[:, :78]
    assert np.mean([neighbours(row) for row in alone]) < 0.85
    assert np.mean([neighbours(row) for row in drawn]) > 1.4
    often = np.bincount(drawn.flatten(), minlength=196) / 400
    assert often.mean() == pytest.approx(78 / 196)
    assert often.min() > 0.01  # corners, too, though fewest blocks reach them, as in BEiT
