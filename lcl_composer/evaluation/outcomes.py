"""What an evaluation found for each test image, and how far its numbers would move on other images.

``runs/NAME/outcomes/<evaluation>.json`` is written by an evaluation beside its result, and read by the suite,
which puts an interval behind each number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcl_composer.errors import DataError, one_line
from lcl_composer.json_data import load_json
from lcl_composer.links import refuse_links

#: Test sets drawn for an interval, the seed they are drawn from, and the share of them that it holds.
RESAMPLES, SEED, COVERED = 1000, 0, 0.95

#: Numbers held in memory at once while sets are drawn.
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Tally:
    """A number that is a sum over the test images divided by a count over them.

    Attributes:
        sums: What each image brings, [N]: whether it was right, its CIDEr, how many of its captions found it.
        counts: By how much each counts, [N]; None: every image once, so that the number is a mean.
    """

    sums: Sequence[float]
    counts: Sequence[float] | None = None

    @property
    def value(self) -> float:
        """The number itself; NaN without an image."""
        total = len(self.sums) if self.counts is None else sum(self.counts)
        return float(sum(self.sums) / total) if total else float("nan")


@dataclass(frozen=True)
class Outcomes:
    """What an evaluation found, image by image.

    Attributes:
        images: Names of the N test images.
        tallies: By the key that the number has in the evaluation's result, such as ``top1``.
        classes: Names of the classes, where images have one.
        labels: The class of each image, [N], as a number into ``classes``.
        predicted: The class that was found for it, [N].
    """

    images: Sequence[str]
    tallies: Mapping[str, Tally]
    classes: Sequence[str] = ()
    labels: Sequence[int] = ()
    predicted: Sequence[int] = ()

    def check(self) -> None:
        """Raise ValueError where something is not one an image."""
        rows = {f"sums of {name}": tally.sums for name, tally in self.tallies.items()}
        rows |= {f"counts of {name}": t.counts for name, t in self.tallies.items() if t.counts is not None}
        if self.classes:
            rows |= {"labels": self.labels, "predicted": self.predicted}
        for name, values in rows.items():
            if len(values) != len(self.images):
                raise ValueError(f"{name}: {len(values)} values of {len(self.images)} images")


def outcomes_file(folder: Path, evaluation: str) -> Path:
    """Where the outcomes of an evaluation lie in a run's folder."""
    return folder / "outcomes" / f"{evaluation}.json"


def write_outcomes(outcomes: Outcomes, folder: Path, evaluation: str) -> None:
    """Write them; one rank should.

    Args:
        outcomes: What was found.
        folder: The run folder.
        evaluation: The evaluation's name in ``evaluation:``.

    Raises:
        ValueError: If something is not one an image.
    """
    outcomes.check()
    path = outcomes_file(folder, evaluation)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(outcomes), separators=(",", ":"), default=_plain) + "\n")


def read_outcomes(folder: Path, evaluation: str) -> Outcomes | None:
    """Read them; None where the evaluation wrote none.

    Raises:
        DataError: If the file is damaged.
    """
    path = outcomes_file(folder, evaluation)
    refuse_links(folder, [path])
    try:
        content = load_json(path.read_text())
        tallies = {name: Tally(**tally) for name, tally in content.pop("tallies").items()}
        outcomes = Outcomes(tallies=tallies, **content)
        outcomes.check()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({one_line(error)}); remove the run and measure it anew") from error
    return outcomes


def intervals(outcomes: Outcomes) -> dict[str, tuple[float, float]]:
    """Where each number lies on 95% of test sets drawn from this one with replacement.

    The percentile bootstrap (Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3)
    over images: captions of an image stay together, as they are not independent. All see the same sets.

    Args:
        outcomes: Of N images.

    Returns:
        Lower and upper end by the number's name; none for N = 0.
    """
    count = len(outcomes.images)
    if not count:
        return {}
    rows = {name: (np.asarray(t.sums, float), _counts(t, count)) for name, t in outcomes.tallies.items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    rng, step = np.random.default_rng(SEED), max(1, _AT_ONCE // count)
    for first in range(0, RESAMPLES, step):
        chosen = rng.integers(0, count, (min(step, RESAMPLES - first), count))
        for name, (sums, counts) in rows.items():
            total = counts[chosen].sum(1)
            drawn[name].append(sums[chosen].sum(1)[total > 0] / total[total > 0])
    ends = [(1 - COVERED) / 2, (1 + COVERED) / 2]
    found = {name: np.concatenate(values) for name, values in drawn.items()}
    return {
        name: (float(low), float(high))
        for name, values in found.items()
        if len(values)
        for low, high in [np.quantile(values, ends)]
    }


def _counts(tally: Tally, count: int) -> np.ndarray:
    return np.ones(count) if tally.counts is None else np.asarray(tally.counts, float)


def _plain(value: Any) -> Any:
    """A tensor, an array or a number of theirs as JSON has it."""
    return value.tolist()
