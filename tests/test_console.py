"""What is printed of progress and time, where standard error is no terminal."""

from __future__ import annotations

import pytest

from rankscope.console import bar, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3359.7, "56 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7199, "2 h 0 min"),
        (12_000, "3 h 20 min"),
    ],
)
def test_no_part_of_a_duration_reaches_60(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_in_the_place_of_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]

    def clock() -> float:
        return now[0]

    with bar("comparing 4 trials", total=4, announce=True, clock=clock) as advance:
        assert capsys.readouterr().err == "comparing 4 trials\n"
        for now[0] in (20.0, 1700.0):  # what comes before the first advance is no pace
            advance(1)
    assert capsys.readouterr().err == "comparing 4 trials: 50%, 56 min 0 s left\n"
    with bar("drawing", total=4, clock=clock) as advance:
        now[0] += 40
        advance(1)
    assert capsys.readouterr().err == "drawing: 25%\n"
    with bar("training", total=4, quiet=True, announce=True, clock=clock) as advance:
        now[0] += 100
        advance(1)
    assert capsys.readouterr().err == ""
