"""A short run of the fuzz script, and that it finds what it looks for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from lcl_composer.convert.captions import Captions
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted
from lcl_composer.errors import DataError
from scripts import fuzz_convert
from scripts.fuzz_convert import damage, fuzz_some
from scripts.fuzz_samples import Sample, own_samples


def test_nothing_crashes_hangs_or_is_lost_uncounted(tmp_path):
    samples = own_samples(tmp_path)
    assert len(samples) == 12
    problems, _ = fuzz_some(range(45), samples, seed=7)
    assert problems == []


def test_damage_is_the_same_for_a_seed_and_changes_nearly_every_file():
    data, other = bytes(range(200)), b"other" * 40
    found = [damage(data, other, np.random.default_rng([3, i])) for i in range(60)]
    assert found == [damage(data, other, np.random.default_rng([3, i])) for i in range(60)]
    assert sum(one != data for one in found) >= 58
    assert any(len(one) < 200 for one in found)
    assert any(len(one) > 200 for one in found)
    assert damage(b"", b"", np.random.default_rng(0)) is not None


class Broken(Captions):
    """Captions that fail in a way of their own; the source that is not damaged is fine."""

    def __init__(self, *arguments, fault: str) -> None:
        super().__init__(*arguments)
        object.__setattr__(self, "fault", fault)

    def samples(self, name: str, record, report: ConversionReport) -> Iterator[Converted]:
        if self.source.name == "copy":
            if self.fault == "hang":
                time.sleep(5)
            if self.fault == "lose":
                return
            raise DataError("one\ntwo")
        yield from super().samples(name, record, report)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [("hang", "no end within"), ("lines", "several lines"), ("lose", "0 of 2")],
)
def test_faults_are_found(tmp_path, monkeypatch, fault, problem):
    monkeypatch.setattr(fuzz_convert, "LIMIT", 0.5)
    if fault == "lose":  # a conversion without documents is an error of its own
        monkeypatch.setattr("lcl_composer.convert.engine._check_splits", lambda *_: None)
    captions = next(sample for sample in own_samples(tmp_path) if sample.name == "captions")
    sample = Sample("captions", captions.folder, partial(Broken, fault=fault))
    problems, _ = fuzz_some(range(8), [sample], seed=1)
    assert any(problem in found for found in problems), problems
