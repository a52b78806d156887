"""SIGTERM, by which a scheduler takes its machines back: the step under way is finished, the run saved and left."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch

from runtime.errors import MarError
from training.distribution import Processes


class PreemptedError(MarError):
    """The run was asked to stop, and has saved what it needs to go on. Exit code 143, as for a process so ended."""

    exit_code = 128 + signal.SIGTERM


class Termination:
    """While the block runs, SIGTERM is remembered instead of ending the process."""

    def __init__(self, processes: Processes) -> None:
        self._processes, self._asked = processes, False
        self._before: Any = None

    def __enter__(self) -> Termination:
        self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def asked(self) -> bool:
        """Whether any of the processes was told to stop; all must ask, and all get the same answer."""
        asked = torch.tensor(float(self._asked), device=self._processes.device)
        return self._processes.mean(asked).item() > 0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
