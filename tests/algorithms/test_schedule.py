from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from composer.core import Time, Timestamp

from lcl_composer.algorithms.schedule import Schedule


def at(
    batch: int, epoch: int = 0, max_duration: str | None = "100ba", epoch_length: int | None = None
) -> Any:
    """A state before ``batch``; with ``epoch_length``, which is the batch of the epoch."""
    timestamp = Timestamp(batch=epoch * (epoch_length or 0) + batch, batch_in_epoch=batch, epoch=epoch)
    return SimpleNamespace(
        timestamp=timestamp,
        max_duration=max_duration and Time.from_timestring(max_duration),
        dataloader_len=epoch_length and Time(epoch_length, "ba"),
        get_elapsed_duration=lambda: Time(batch / 100, "dur"),
    )


@pytest.mark.parametrize(("batch", "value"), [(0, 2.0), (10, 2.0), (15, 1.5), (20, 1.0), (99, 1.0)])
def test_linear_between_two_batches(batch: int, value: float) -> None:
    assert Schedule(2, 1, "linear", "10ba", "20ba").value(at(batch)) == pytest.approx(value)


def test_cosine_is_flat_at_its_ends_and_meets_the_line_in_the_middle() -> None:
    schedule = Schedule(0, 1, "cosine", "0ba", "1dur")
    assert schedule.value(at(50)) == pytest.approx(0.5)
    assert schedule.value(at(10)) == pytest.approx((1 - math.cos(0.1 * math.pi)) / 2)
    assert schedule.value(at(10)) < 0.03


def test_a_step_switches_at_its_time() -> None:
    schedule = Schedule(1, 0, "linear", "3ep", "3ep")
    assert [schedule.value(at(0, epoch, epoch_length=5)) for epoch in (2, 3, 4)] == [1, 0, 0]
    assert [schedule.over(at(0, epoch, epoch_length=5)) for epoch in (2, 3)] == [False, True]


@pytest.mark.parametrize(("until", "per_epoch"), [("1dur", 0.5), ("2ep", 0.5), ("0.5dur", 1.0)])
def test_it_moves_within_epochs(until: str, per_epoch: float) -> None:
    schedule = Schedule(0, 1, "linear", "0ba", until)
    for epoch, batch in [(0, 0), (0, 2), (0, 3), (1, 0), (1, 3), (1, 4)]:
        state = at(batch, epoch, max_duration="2ep", epoch_length=4)
        assert schedule.value(state) == pytest.approx(min(1.0, (epoch + batch / 4) * per_epoch))


def test_epochs_need_the_length_of_the_loader() -> None:
    with pytest.raises(ValueError, match="known length"):
        Schedule(0, 1, "linear", "0ba", "1ep").value(at(1))


def test_zero_begins_in_any_unit_but_others_must_agree() -> None:
    assert Schedule(0, 1, "linear", "0ba", "0.5dur").value(at(25)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="must have one unit"):
        Schedule(0, 1, "linear", "5ba", "0.5dur")
    for until in ("5sec", "5iter", "1h"):
        with pytest.raises(ValueError, match=f"until '{until}' must be in ep, ba, sp, tok or dur"):
            Schedule(0.0, 1.0, "linear", "0ba", until)
    with pytest.raises(ValueError, match="must not be negative"):
        Schedule(0.0, 1.0, "linear", "-2ba", "3ba")
    with pytest.raises(ValueError, match="is after until"):
        Schedule(0, 1, "linear", "5ba", "4ba")


def test_shares_of_the_training_need_its_length() -> None:
    with pytest.raises(ValueError, match="needs max_duration"):
        Schedule(0, 1, "linear", "0ba", "1dur").value(at(1, max_duration=None))
