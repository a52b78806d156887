"""SIGTERM, by which a scheduler takes its machines back, or Ctrl-C: a step is finished, the run saved and left."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from runtime.errors import MarError
from training.distributed import Processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptedError(MarError):
    """The run was asked to stop, and has saved what it needs to go on. The exit code is that of a process so ended."""

    def __init__(self, message: str, by: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = 128 + by


class Termination:
    """While the block runs, SIGTERM and the first SIGINT are remembered instead of ending the process."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked: list[signal.Signals] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Termination:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, before in self._before.items():
            if before != signal.SIG_IGN:  # as a script has SIGINT ignored in what it starts in the background
                signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def asked(self) -> signal.Signals | None:
        """By which signal any of the processes was told to stop; all must ask, and all get the same answer."""
        return next(iter(self._processes.together(self._asked.copy())), None)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(signal.Signals(number))
        if number == signal.SIGINT and self._processes.count == 1:  # of several, torchrun ends those that take too long
            signal.signal(number, self._before[number])
            # Not by print, which must not be called while it is under way.
            os.write(2, b"\nstopping once this step is done and saved; Ctrl-C again stops at once\n")
