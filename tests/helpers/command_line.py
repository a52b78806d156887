"""Runs the command `mar` in the process of the test."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from runtime.cli.main import main


class Ended(NamedTuple):
    """How `mar` ended, and what it printed."""

    code: int | str | None
    out: str
    err: str


Command = Callable[..., Ended]  # one command of `mar`, given its arguments as they are


class Mar:
    """Runs `mar` in this process, sparing the start of another: a line of it, and further arguments as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, line: str, *more: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["mar", *shlex.split(line), *map(str, more)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *self._capfd.readouterr())


@pytest.fixture
def mar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Mar:
    return Mar(monkeypatch, capfd)
