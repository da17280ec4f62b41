from __future__ import annotations

import re

import pytest

from lcl_composer.callbacks.progress import ProgressBar, ProgressLines
from lcl_composer.callbacks.training_metrics import TrainingMetrics
from tests.callbacks.training import make_trainer


@pytest.mark.parametrize(
    ("seconds", "duration", "shares"),
    [
        (0.0, "4ba", ["1, 25%", "2, 50%", "3, 75%", "4, 100%"]),
        (3600.0, "4ba", ["1, 25%", "4, 100%"]),
        (3600.0, "1ep", ["1, 10%", "10, 100%"]),
    ],
)
def test_first_and_last_batch_and_every_so_often(
    capsys: pytest.CaptureFixture[str], seconds: float, duration: str, shares: list[str]
) -> None:
    trainer = make_trainer([ProgressLines(seconds)], duration=duration)
    trainer.fit()
    trainer.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("batch ").partition(":")[0] for line in lines] == shares
    assert all(": total " in line for line in lines)
    assert "left" not in lines[0]
    assert all(line.endswith("s left") for line in lines[1:])
    assert lines[-1].endswith("; 0 s left")
    assert "\x1b" not in "".join(lines)


def test_images_a_second_where_they_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer([TrainingMetrics(window_size=1), ProgressLines(0.0)], duration="3ba")
    trainer.fit()
    trainer.close()
    first, *others = capsys.readouterr().out.splitlines()
    assert "images/s" not in first
    assert len(others) == 2
    for line in others:
        rate = re.search(r"; ([\d,]+) images/s; ", line)
        assert rate
        assert int(rate[1].replace(",", "")) > 0


def test_the_bar_fits_into_100_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    trainer = make_trainer([ProgressBar()], duration="4ba")
    trainer.fit()
    trainer.close()
    printed = capsys.readouterr()
    drawn = [text for text in re.split(r"[\r\n]|\x1b\[A", printed.err) if text.strip()]
    assert "100%|" in drawn[-1]
    assert "batch 4 [" in drawn[-1]
    assert "total " in drawn[-1]
    assert max(map(len, drawn)) <= 100
    assert printed.out == ""


def test_nothing_of_composers_own_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Its bars come with boxes of stars and ``node_name: unknown``."""
    trainer = make_trainer([ProgressBar()], duration="1ba")
    trainer.fit()
    trainer.close()
    printed = capsys.readouterr()
    assert "***" not in printed.err + printed.out
    assert "node_name" not in printed.err + printed.out
