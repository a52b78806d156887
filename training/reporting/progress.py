"""Progress of a training run for a person: a bar on a terminal, one line per minute elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from typing import Protocol

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 60.0
_MAX_WARNINGS = 10


class Progress(Protocol):
    """Shows on standard error how far a run is and how long it will still take."""

    def step(self, step: int, loss: float | None) -> None:
        """Show that `step` steps are done; `loss` is smoothed over some steps, and None before the first loss."""

    def message(self, text: str) -> None:
        """Print `text` on a line of its own."""

    def close(self) -> None:
        """End the display."""


def show_progress(steps: int, batch: int, step: int) -> Progress:
    """Open the progress display of a run.

    Args:
        steps: The number of steps of the whole run.
        batch: The number of images per step.
        step: The number of steps that are already done.
    """
    return _Bar(steps, batch, step) if sys.stderr.isatty() else _Lines(steps, batch, step)


class _Bar:
    def __init__(self, steps: int, batch: int, step: int) -> None:
        self._batch = batch
        self._bar = tqdm(
            total=steps * batch, initial=step * batch, unit="img", unit_scale=True, smoothing=0.02, mininterval=1
        )

    def step(self, step: int, loss: float | None) -> None:
        self._bar.update(self._batch)
        self._bar.set_postfix(step=step, **({} if loss is None else {"loss": f"{loss:.4f}"}))

    def message(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """Prints the first line after the first step; the time left is based on the rate of this session."""

    def __init__(self, steps: int, batch: int, step: int) -> None:
        self._steps, self._batch, self._first_step = steps, batch, step
        self._started = time.monotonic()
        self._last_line: float | None = None

    def step(self, step: int, loss: float | None) -> None:
        now = time.monotonic()
        if self._last_line is not None and now - self._last_line < _SECONDS_BETWEEN_LINES and step < self._steps:
            return
        self._last_line = now
        seconds_per_step = (now - self._started) / (step - self._first_step)
        loss_text = "" if loss is None else f"  loss {loss:.4f}"
        self.message(
            f"step {step} of {self._steps}{loss_text}  {self._batch / seconds_per_step:.1f} img/s  "
            f"{readable_time((self._steps - step) * seconds_per_step)} left"
        )

    def message(self, text: str) -> None:
        with contextlib.suppress(OSError):  # after a hang-up the terminal is gone, and the run is still to be saved
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def readable_time(seconds: float) -> str:
    """Format a duration in its two largest units, such as `3 h 20 min`."""
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86400))
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{int(seconds)} s"


def print_lines(lines: Iterable[str]) -> None:
    """Print what was found in a dataset on standard error."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print the first ten different warnings on standard error, and how many more there are."""
    different = list(dict.fromkeys(warnings))
    for warning in different[:_MAX_WARNINGS]:
        print(warning, file=sys.stderr)
    if len(different) > _MAX_WARNINGS:
        print(f"and {len(different) - _MAX_WARNINGS} more warnings like these", file=sys.stderr)
