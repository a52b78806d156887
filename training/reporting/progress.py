"""How far a run is and how long it will still take: a bar on a terminal, a line a minute anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Protocol

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 60.0
_TOLD = 10


class Progress(Protocol):
    """Told of every step; shown to a person."""

    def step(self, step: int, loss: float | None) -> None:
        """`step` steps are done, the last with this loss, smoothed over some steps; None while there was none."""

    def tell(self, text: str) -> None:
        """A line of its own."""

    def close(self) -> None: ...


def show_progress(steps: int, batch: int, step: int) -> Progress:
    """For a run of `steps` steps of `batch` images, of which `step` are done."""
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

    def tell(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """The first line comes after the first step; the time left counts on the rate of this session."""

    def __init__(self, steps: int, batch: int, step: int) -> None:
        self._steps, self._batch, self._first = steps, batch, step
        self._started = time.monotonic()
        self._shown: float | None = None

    def step(self, step: int, loss: float | None) -> None:
        now = time.monotonic()
        if self._shown is not None and now - self._shown < _SECONDS_BETWEEN_LINES and step < self._steps:
            return
        self._shown = now
        each = (now - self._started) / (step - self._first)
        lost = "" if loss is None else f"  loss {loss:.4f}"
        self.tell(
            f"step {step} of {self._steps}{lost}  {self._batch / each:.1f} img/s  "
            f"{readable_time((self._steps - step) * each)} left"
        )

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def readable_time(seconds: float) -> str:
    """A duration in its two largest units."""
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86400))
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{int(seconds)} s"


def tell_complaints(warnings: Iterable[str]) -> None:
    """What was found wrong with the data, each once and the first ten of them, on standard error."""
    different = list(dict.fromkeys(warnings))
    for complaint in different[:_TOLD]:
        print(complaint, file=sys.stderr)
    if len(different) > _TOLD:
        print(f"and {len(different) - _TOLD} more like these", file=sys.stderr)
