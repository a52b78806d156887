"""The progress display: lines, the bar, and durations."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.reporting import progress
from training.reporting.progress import readable_time, show_progress


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_progress_is_a_line_per_minute_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    shown = show_progress(steps=1000, batch=8, step=500)
    for step in range(501, 1001):
        clock.now += 2  # seconds a step
        shown.step(step, 0.5)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 501 of 1000  loss 0.5000  4.0 img/s  16 min 38 s left"
    assert lines[1] == "step 531 of 1000  loss 0.5000  4.0 img/s  15 min 38 s left"
    assert lines[-1] == "step 1000 of 1000  loss 0.5000  4.0 img/s  0 s left"
    assert len(lines) == 18


def test_on_a_terminal_progress_is_a_bar_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = show_progress(steps=4, batch=8, step=1)
    shown.step(2, None)
    shown.step(3, 0.25)
    shown.message("a line")
    shown.close()
    output = capsys.readouterr().err
    assert "a line\n" in output
    assert "24.0/32.0" in output
    assert "loss=0.2500" in output


@given(st.integers(0, 10**7))
def test_durations_have_their_two_largest_units(seconds: int) -> None:
    units = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    words = readable_time(seconds).split()
    printed = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert printed <= seconds < printed + units[words[-1]]
    assert len(words) <= 4
