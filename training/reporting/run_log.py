"""The log of a run: one JSON object a line for each step and each event, as other parts of the project read it."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

from runtime.errors import CheckpointError
from runtime.storage.schema import REST
from runtime.storage.structured_files import FaultReport, read_json_lines

MAX_WINDOW = 100
"""The most steps that a shown loss is the mean of."""
LOG_FILE = "log.jsonl"
"""The name of the log in the folder of a run."""

_LARGEST = 3.5e38  # of a number in float32
_MOST_STEPS = 10**12
_FAULT_REPORT = FaultReport(CheckpointError, "delete the log; the run continues without its earlier entries")


def _measured() -> Any:
    return dataclasses.field(default=None, metadata={"least": -_LARGEST, "most": _LARGEST})


@dataclasses.dataclass(frozen=True)
class LogEntry:
    """An entry of a log: of a step, of a skipped step, or of another event.

    Attributes:
        step: The number of steps that were done.
        loss: The loss of a step that was not skipped.
        gradient_norm: The norm of its gradient.
        images_per_second: Its speed.
        validation_loss: The loss on held-out images after the step.
        event: The message of an event.
        bad_data: The number of different warnings about the data so far; None if the event is no such warning.
        skipped: Details of a skipped step.
        others: Further values by name.
    """

    step: int = dataclasses.field(metadata={"least": 0, "most": _MOST_STEPS})
    loss: float | None = _measured()
    gradient_norm: float | None = _measured()
    images_per_second: float | None = _measured()
    validation_loss: float | None = _measured()
    event: str | None = None
    bad_data: int | None = None
    skipped: dict[str, Any] | None = None
    others: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={REST: True})


def mean_window(steps: int) -> int:
    """Return over how many steps the mean of the losses is shown after `steps` steps: the last tenth, 100 at most."""
    return min(MAX_WINDOW, math.ceil(steps / 10))


def read_log(log: pathlib.Path) -> list[LogEntry]:
    """Read a log; a missing one has no entries, and a last line that is no entry is left out.

    A running or a killed process leaves such a line.

    Raises:
        CheckpointError: Another line is no entry.
    """
    return read_json_lines(log, LogEntry, _FAULT_REPORT) if log.exists() else []


def logged_warnings(log: pathlib.Path) -> set[str]:
    """Read the different warnings about the data from a log."""
    return {entry.event for entry in read_log(log) if entry.bad_data is not None and entry.event is not None}


def logged_steps(log: pathlib.Path) -> list[LogEntry]:
    """Read the entries of the steps from a log, without skipped steps and events."""
    return [entry for entry in read_log(log) if entry.loss is not None]
