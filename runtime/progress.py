"""Progress of long work for a person: a bar with the time left on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from runtime.log import DISPLAYS, LOG, hidden_displays

_Progress = TypeVar("_Progress", bound="Progress")

_SECONDS_TO_FIRST_LINE = 10.0
_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_BARS = 0.1
_SHORTEST_BAR, _LONGEST_BAR = 10, 30  # characters
_CLEAR_LINE = "\r\033[K"


def terminal_shown() -> bool:
    """Return whether progress is shown as a bar, because standard error is a terminal and the log level has it.

    If it is not, pass no function for the progress of iterations to a generator: with one, the host waits for the GPU
    after every iteration.
    """
    return sys.stderr is not None and sys.stderr.isatty() and LOG.isEnabledFor(logging.INFO)


class Progress:
    """Shows on standard error how far a piece of work is, and how long it will still take. It is a context manager.

    Without a terminal, work of less than ten seconds prints nothing. The time left follows from the work and the time
    since the progress was opened.

    Args:
        total: The amount of work, in any unit.
        label: What is done, such as `generating images`.
        unit: The plural of the unit, such as `images`; empty where it says nothing to a person.
        done: The amount that was done before.
    """

    def __init__(self, total: int, label: str, *, unit: str = "", done: int = 0) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._done = self._done_before = done
        self._note = ""
        self._opened = time.monotonic()
        self._bar = terminal_shown()
        self._next = self._opened + (0 if self._bar else _SECONDS_TO_FIRST_LINE)
        self._shown = False
        if self._bar:
            DISPLAYS.append(self)
            self.show()

    def update(self, by: int = 1, note: str = "") -> None:
        """Add an amount of work that is done; `note` is shown behind it until the next, such as the loss."""
        self._done, self._note = self._done + by, note
        now = time.monotonic()
        finished = by > 0 and self._done >= self._total and (self._bar or self._shown)
        if now >= self._next or finished:
            self._next = now + (_SECONDS_BETWEEN_BARS if self._bar else _SECONDS_BETWEEN_LINES)
            self.show()

    def skip(self, by: int) -> None:
        """Add an amount of work that was done before, by an earlier process for example."""
        self._done, self._done_before = self._done + by, self._done_before + by

    def message(self, text: str, report: Callable[[str], None] | None = None) -> None:
        """Tell a line of text by the log, or by `report`, without disturbing the bar."""
        if report is None:
            LOG.info(text)
        else:
            with hidden_displays():
                report(text)

    def close(self) -> None:
        """End the display; the bar stays where it is."""
        if self in DISPLAYS:
            self.show()
            _write("\n")
            DISPLAYS.remove(self)

    def __enter__(self: _Progress) -> _Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def hide(self) -> None:
        """Remove the bar from the terminal."""
        _write(_CLEAR_LINE)

    def show(self) -> None:
        """Draw the bar, or print a line."""
        self._shown = True
        if not self._bar:
            LOG.info(f"{self._label}: {', '.join(self._parts())}")
            return
        width = shutil.get_terminal_size().columns - 1  # a full line would begin a new one
        text = "  ".join(self._parts())
        bar = min(_LONGEST_BAR, max(_SHORTEST_BAR, width - len(f"{self._label}  []  {text}")))
        filled = bar * min(self._done, self._total) // max(1, self._total)
        line = f"{self._label}  [{'#' * filled}{'-' * (bar - filled)}]  {text}"
        _write(f"{_CLEAR_LINE}{line[:width]}")

    def _parts(self) -> list[str]:
        share = 100 * min(self._done, self._total) // max(1, self._total)
        amount = f"{self._done:,} of {self._total:,}{f' {self._unit}' if self._unit else ''}"
        parts = [f"{amount} ({share}%)"] if self._unit else [f"{share}%"]
        seconds, done = time.monotonic() - self._opened, self._done - self._done_before
        if self._done >= self._total:
            parts.append(f"in {readable_time(seconds)}")
        elif done and seconds:
            parts.append(f"{readable_time((self._total - self._done) * seconds / done)} left")
        return [*parts, self._note] if self._note else parts


def readable_time(seconds: float) -> str:
    """Format a duration in its two largest units, such as `3 h 20 min`."""
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86400))
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{int(seconds)} s"


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # after a hang-up the terminal is gone; the work goes on
        sys.stderr.write(text)
        sys.stderr.flush()
