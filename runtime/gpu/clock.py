"""Times of the stages of a generation on a GPU, measured by CUDA events on its stream."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections import defaultdict

from runtime.gpu.cuda import Cuda


class StageClock:
    """Sums up the seconds that each stage takes on the GPU. A mark on the stream ends each stage."""

    def __init__(self, cuda: Cuda) -> None:
        """Create a clock for the stream of `cuda`."""
        self._cuda = cuda
        self._marks: list[tuple[str, ctypes.c_void_p]] = []
        self._owner = contextlib.ExitStack()

    def mark(self, stage: str) -> None:
        """Mark the end of a stage: the work enqueued since the previous mark counts as `stage`."""
        self._marks.append((stage, self._cuda.event(self._owner)))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage since the last call, and reset the sums. All work must be done.

        The first mark only starts the clock; its name is not used.
        """
        sums: dict[str, float] = defaultdict(float)
        marks, self._marks = self._marks, []
        with self._owner:  # which frees the events of all marks
            for (_, before), (stage, after) in itertools.pairwise(marks):
                sums[stage] += self._cuda.seconds_between(before, after)
        return dict(sums)
