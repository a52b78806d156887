"""The time that a run will take, from its first steps."""

from __future__ import annotations

import statistics

from runtime.checks import pluralize
from runtime.progress import readable_time

_STEPS = 5


class Estimate:
    """Collects the times of the first steps of a session, and makes one estimate of them."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def add(self, seconds: float, remaining: int) -> str | None:
        """Take the time of a step; return the estimate in words after the fifth step, None at others.

        Args:
            seconds: The time of the step.
            remaining: The number of steps after it.
        """
        self._seconds.append(seconds)
        if len(self._seconds) != _STEPS or not remaining:
            return None
        step = statistics.median(self._seconds[1:])  # the first step prepares memory
        return f"about {readable_time(remaining * step)} for the other {pluralize(remaining, 'step')}, without samples"
