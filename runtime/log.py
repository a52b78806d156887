"""What a person is told while a command works: notes and warnings, which one logger prints on standard error.

`--log-level` of the command line sets the level of this logger, `mar`. A program that imports these packages can do the
same with `logging.getLogger("mar").setLevel(...)`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Protocol

LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
"""The choices of `--log-level`: each also shows what the ones before it show."""


class Display(Protocol):
    """Something on a terminal that stays below what is printed, such as a bar."""

    def hide(self) -> None:
        """Remove it from the terminal."""

    def show(self) -> None:
        """Draw it again."""


DISPLAYS: list[Display] = []
"""What the terminal shows now."""


@contextlib.contextmanager
def hidden_displays() -> Iterator[None]:
    """Hide what the terminal shows during the block, which prints lines."""
    for display in DISPLAYS:
        display.hide()
    try:
        yield
    finally:
        for display in DISPLAYS:
            display.show()


class _StandardError(logging.Handler):
    """Prints a message as it is, on what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError), hidden_displays():  # after a hang-up the terminal is gone
                print(record.getMessage(), file=sys.stderr, flush=True)


LOG = logging.getLogger("mar")
LOG.setLevel(logging.INFO)
LOG.propagate = False
if not LOG.handlers:
    LOG.addHandler(_StandardError())
