from __future__ import annotations

import pytest
import torch

from lcl_composer.callbacks.periodic import HeldOut, Periodic
from tests.callbacks.training import make_trainer
from tests.evaluation.fakes import FakeLCL


class Record(Periodic):
    def __init__(self, every: str, images: int = 6):
        super().__init__(every)
        self.steps: list[int] = []
        self.ids: list[list[str]] = []
        self.held_out = HeldOut(images)

    def act(self, state, logger) -> None:
        self.steps.append(int(state.timestamp.batch))
        self.ids.append([i for batch in self.held_out.batches(state) for i in batch["ids"]])


@pytest.mark.parametrize(
    ("every", "duration", "steps"),
    [
        ("2ba", "5ba", [2, 4, 5]),
        ("2ba", "4ba", [2, 4]),
        ("1ep", "2ep", [10, 20]),
        ("100ba", "3ba", [3]),
        ("10ba", "1ep", [10]),
    ],
)
def test_acts_every_so_often_and_once_at_the_end(every: str, duration: str, steps: list[int]) -> None:
    record = Record(every)
    make_trainer([record], duration=duration).fit()
    assert record.steps == steps


def test_held_out_documents_are_the_same_each_time() -> None:
    record = Record("1ba")
    make_trainer([record], duration="3ba").fit()
    assert record.ids[0] == record.ids[1] == record.ids[2]
    assert len(record.ids[0]) == 8  # two batches of four make six images
    assert all(name.startswith("held") for name in record.ids[0])


def test_the_training_batch_stands_in_by_microbatches() -> None:
    record = Record("1ba", images=3)
    make_trainer([record], duration="2ba", held_out=False).fit()
    assert record.ids == [[f"train{step}-{i}" for i in range(4)] for step in (0, 1)]


def test_training_is_bitwise_the_same_with_it() -> None:
    plain, watched = FakeLCL(dropout=0.3), FakeLCL(dropout=0.3)
    watched.load_state_dict(plain.state_dict())
    make_trainer([], model=plain, duration="4ba").fit()
    make_trainer([Record("1ba")], model=watched, duration="4ba").fit()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


@pytest.mark.parametrize("every", ["0ba", "-5ba", "0dur", "5iter"])
def test_what_would_never_come_is_refused(every: str) -> None:
    with pytest.raises(ValueError, match=f"every '{every}' must be above 0"):
        Record(every)


@pytest.mark.parametrize("images", [0, -1])
def test_no_images_are_refused(images: int) -> None:
    with pytest.raises(ValueError, match=f"images {images} must be at least 1"):
        HeldOut(images)
