"""The progress display: a bar on a terminal, lines elsewhere, and durations."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import progress
from runtime.progress import Progress, readable_time, terminal_shown


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "terminal_shown", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")


def last_bar(capsys: pytest.CaptureFixture[str]) -> str:
    """What a person sees of the bar now."""
    return capsys.readouterr().err.rpartition("\033[K")[2]


def test_without_a_terminal_progress_is_a_line_per_minute_with_the_time_left(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(1000, "training", unit="steps", done=500) as shown:
        for _ in range(500):
            clock.now += 2  # seconds a step
            shown.update(note="loss 0.5000")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 505 of 1,000 steps (50%), 16 min 30 s left, loss 0.5000"
    assert lines[1] == "training: 535 of 1,000 steps (53%), 15 min 30 s left, loss 0.5000"
    assert lines[-1] == "training: 1,000 of 1,000 steps (100%), in 16 min 40 s, loss 0.5000"
    assert len(lines) == 18


def test_short_work_prints_nothing_without_a_terminal(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(9, "encoding") as shown:
        for _ in range(9):
            clock.now += 1
            shown.update()
    assert capsys.readouterr().err == ""


def test_what_was_done_before_does_not_shorten_the_time_left(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, "generating", unit="images") as shown:
        shown.skip(80)
        clock.now += 60
        shown.update(5)
    assert capsys.readouterr().err == "generating: 85 of 100 images (85%), 3 min 0 s left\n"


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_progress_is_a_bar_with_the_time_left(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(4, "encoding", unit="images") as shown:
        assert last_bar(capsys) == f"encoding  [{'-' * 30}]  0 of 4 images (0%)"
        clock.now += 3
        shown.update(note="a note")
        assert last_bar(capsys) == f"encoding  [{'#' * 7}{'-' * 23}]  1 of 4 images (25%)  9 s left  a note"
        shown.message("a line")
        printed = capsys.readouterr().err
        assert "\r\033[Ka line\n" in printed  # on a line of its own, with the bar below
        assert printed.endswith("9 s left  a note")
        clock.now += 9
        shown.update(3)
    assert last_bar(capsys) == f"encoding  [{'#' * 30}]  4 of 4 images (100%)  in 12 s\n"


@pytest.mark.usefixtures("terminal")
def test_a_bar_is_never_longer_than_the_line(
    clock: _Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with Progress(4, "encoding", unit="images") as shown:
        clock.now += 3
        shown.update(note="a note that is longer than the line")
        assert last_bar(capsys) == "encoding  [##--------]  1 of 4 images (25%)  9 s left  a no"
    monkeypatch.setenv("COLUMNS", "79")
    with Progress(4, "encoding", unit="images") as shown:
        clock.now += 3
        shown.update(note="a note that is longer")  # the bar becomes shorter first
        assert (
            last_bar(capsys) == f"encoding  [{'#' * 3}{'-' * 9}]  1 of 4 images (25%)  9 s left  a note that is longer"
        )


@pytest.mark.usefixtures("terminal")
def test_a_terminal_that_is_gone_does_not_end_the_work(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys.stderr, "write", gone)
    with Progress(2, "encoding") as shown:
        shown.update(2)
        shown.message("a line")


def test_a_closed_standard_error_does_not_end_the_work(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not terminal_shown()
    with Progress(2, "encoding") as shown:
        clock.now += 60
        shown.update(2)
        shown.message("a line")


@given(st.integers(0, 10**7))
def test_durations_have_their_two_largest_units(seconds: int) -> None:
    units = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    words = readable_time(seconds).split()
    printed = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert printed <= seconds < printed + units[words[-1]]
    assert len(words) <= 4
