"""Stopping on SIGTERM, as schedulers send it, on a hang-up of the terminal, or on Ctrl-C.

The step is finished, the run saved, the process ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any

from runtime.errors import MarError
from training.distributed import Processes

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""The signals that stop a run after the step under way."""


class PreemptedError(MarError):
    """A signal stopped the run, and the run has saved what it needs to resume.

    Attributes:
        exit_code: 128 plus the number of the signal, as a shell reports a process that the signal has ended.
    """

    def __init__(self, message: str, by: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = 128 + by


class Termination:
    """A context manager that records SIGTERM, SIGHUP and the first SIGINT instead of letting them end the process.

    A signal that is ignored on entry stays ignored. The handlers of before are restored on exit.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._received: list[signal.Signals] = []
        self._handlers: dict[int, Any] = {}
        self._woken = -1

    def __enter__(self) -> Termination:
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        # Whoever set this descriptor ends the process if it takes too long after a signal. A step may take longer.
        self._woken = signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            if handler != signal.SIG_IGN:  # a script starts its background jobs with SIGINT ignored
                signal.signal(number, self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken)

    def requested(self) -> signal.Signals | None:
        """Return the signal that any process has received, None for none.

        Every process must call it, and all get the same answer.
        """
        return next(iter(self._processes.gather_lists(self._received.copy())), None)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))
        # With several processes, torchrun ends those that take too long.
        if number == signal.SIGINT and self._processes.world_size == 1:
            signal.signal(number, self._handlers[number])
            signal.set_wakeup_fd(self._woken)
            # Not by print: a signal may arrive while print runs, and print is not reentrant.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping once this step is done and saved; Ctrl-C again stops at once\n")
