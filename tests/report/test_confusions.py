from __future__ import annotations

from lcl_composer.evaluation.outcomes import Outcomes
from lcl_composer.report.confusions import Confused, matrix, most_confused


def outcomes(classes: int) -> Outcomes:
    """Three images of class 0, one of which is taken for 1; two of class 2, both taken for 0."""
    names = [f"class {i}" for i in range(classes)]
    return Outcomes(list("abcde"), {}, names, [0, 0, 0, 2, 2], [0, 0, 1, 0, 0])


def test_the_most_frequent_stand_first() -> None:
    assert most_confused(outcomes(3)) == [
        Confused("class 2", "class 0", 2, 2),
        Confused("class 0", "class 1", 1, 3),
    ]


def test_a_cell_is_the_share_of_its_row() -> None:
    drawn = matrix(outcomes(3))
    assert drawn.count("<rect") == 4  # the frame, and three cells that hold images
    assert 'fill-opacity="0.67"><title>class 0 as class 0: 2 of 3' in drawn
    assert 'class="wrong" x="47.0" y="200.0" width="100.0" height="100.0" fill-opacity="1.00"' in drawn
    assert drawn.count("<text") == 6


def test_many_classes_go_without_names_and_very_many_without_a_picture() -> None:
    assert "<text" not in matrix(outcomes(40))
    assert matrix(outcomes(101)) == ""
