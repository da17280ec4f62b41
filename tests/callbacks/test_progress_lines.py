from __future__ import annotations

import pytest

from lcl_composer.callbacks.progress_lines import ProgressLines
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
    assert all("total " in line for line in lines)
    assert "left" not in lines[0]
    assert all(line.endswith("s left") for line in lines[1:])
    assert lines[-1].endswith("; 0 s left")
    assert "\x1b" not in "".join(lines)
