"""What the GPU itself says of how long the parts of an image took, by events on its stream."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections import defaultdict

from runtime.gpu.cuda import Cuda


class StageClock:
    """Sums the seconds between marks, each named for what lies before it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._marks: list[tuple[str, ctypes.c_void_p]] = []
        self._owner = contextlib.ExitStack()

    def mark(self, stage: str) -> None:
        """Say that what the stream was given since the mark before was `stage`."""
        self._marks.append((stage, self._cuda.event(self._owner)))

    def seconds(self) -> dict[str, float]:
        """Each stage's sum, of work that is done; counting begins anew."""
        sums: dict[str, float] = defaultdict(float)
        marks, self._marks = self._marks, []
        with self._owner:  # of the marks, which are freed whatever fails
            for (_, before), (stage, after) in itertools.pairwise(marks):
                sums[stage] += self._cuda.seconds_between(before, after)
        return dict(sums)
