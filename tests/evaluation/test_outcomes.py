from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lcl_composer.errors import DataError
from lcl_composer.evaluation.outcomes import (
    Outcomes,
    Tally,
    intervals,
    outcomes_file,
    read_outcomes,
    write_outcomes,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tallies = {"top1": Tally(np.array([1.0, 0.0])), "recall": Tally([2, 0], [5, 4])}
    found = Outcomes(["a", "b"], tallies, ["cat", "dog"], np.array([0, 1]), [0, 0])
    write_outcomes(found, tmp_path, "classify")
    again = read_outcomes(tmp_path, "classify")
    assert again == Outcomes(
        ["a", "b"], {"top1": Tally([1, 0]), "recall": Tally([2, 0], [5, 4])}, ["cat", "dog"], [0, 1], [0, 0]
    )
    assert (again.tallies["top1"].value, again.tallies["recall"].value) == (0.5, 2 / 9)
    assert read_outcomes(tmp_path, "caption") is None


def test_an_interval_is_that_of_a_share(tmp_path: Path) -> None:
    """The normal approximation of a binomial, 1.96 sqrt(p (1 - p) / N), holds at N = 2,000."""
    right = np.arange(2000) % 10 < 3
    low, high = intervals(Outcomes([str(i) for i in range(2000)], {"top1": Tally(right.tolist())}))["top1"]
    assert 0.5 * (low + high) == pytest.approx(0.3, abs=0.003)
    assert high - low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 2000) ** 0.5, rel=0.08)


def test_captions_of_an_image_are_drawn_together() -> None:
    """Five captions that are right or wrong together say no more than one."""
    right, images = np.arange(400) % 2, [str(i) for i in range(400)]
    found = intervals(Outcomes(images, {"one": Tally(right), "five": Tally(5 * right, np.full(400, 5))}))
    assert found["one"] == pytest.approx(found["five"])


def test_one_image_and_none_and_one_without_captions() -> None:
    assert intervals(Outcomes(["a"], {"top1": Tally([1.0])})) == {"top1": (1.0, 1.0)}
    assert intervals(Outcomes([], {"top1": Tally([])})) == {}
    low, high = intervals(Outcomes(["a", "b"], {"recall": Tally([3, 0], [3, 0])}))["recall"]
    assert (low, high) == (1.0, 1.0)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sums of top1: 1 values of 2 images"):
        write_outcomes(Outcomes(["a", "b"], {"top1": Tally([1.0])}), tmp_path, "x")
    with pytest.raises(ValueError, match="predicted: 0 values of 1"):
        write_outcomes(Outcomes(["a"], {}, ["cat"], [0]), tmp_path, "x")
    path = outcomes_file(tmp_path, "x")
    path.parent.mkdir()
    for damaged in ('{"images": [', "[]", json.dumps({"images": ["a"], "tallies": {"n": {"sums": []}}})):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"outcomes/x\.json: damaged .*; remove the run"):
            read_outcomes(tmp_path, "x")
