from __future__ import annotations

import pytest

from lcl_composer.data.rng import sample_rng


def test_the_same_in_every_process():
    """Fixed numbers: another value here means that runs can no longer be resumed or repeated."""
    assert sample_rng(17, 2, "doc-é", "layout").integers(0, 1 << 30, 3).tolist() == EXPECTED


EXPECTED = [121595052, 531047238, 702225851]


@pytest.mark.parametrize(
    "other", [(18, 2, "a", "x"), (17, 3, "a", "x"), (17, 2, "b", "x"), (17, 2, "a", "y")]
)
def test_each_part_of_the_key_matters(other: tuple[int, int, str, str]):
    assert sample_rng(17, 2, "a", "x").random() != sample_rng(*other).random()


def test_parts_of_the_key_do_not_run_together():
    assert sample_rng(1, 11, "a", "x").random() != sample_rng(11, 1, "a", "x").random()
    assert sample_rng(1, 1, "ax", "").random() != sample_rng(1, 1, "x", "a").random()
