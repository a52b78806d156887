"""Processes that hold a file or a folder, and what is left when they end."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from runtime.storage import locks

# Opens the block that argv names for argv's path, says so, and stays in it until its input ends.
_HELD = """
import pathlib, sys
from runtime.storage import files
with getattr(files, sys.argv[1])(pathlib.Path(sys.argv[2])) as temporary:
    print("in the block", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def other_process(block: str, path: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, inside the block of a function of runtime.storage.files."""
    command = [sys.executable, "-c", _HELD, block, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the block\n"
        try:
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process, which can clean up nothing."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def names(folder: pathlib.Path) -> list[str]:
    """The sorted names of what is in a folder, hidden ones included."""
    return sorted(entry.name for entry in folder.iterdir())


def unlock_as_at_a_kill() -> None:
    """Give back the locks of this process, and leave their files, as the system does for a killed process."""
    for lock in list(locks._held.values()):
        lock.release(remove=False)


@pytest.fixture(autouse=True)
def nothing_stays_held() -> Iterator[None]:
    """Fail a test that leaves a lock, which the next test of this process would find."""
    before = locks.held_files()
    yield
    assert locks.held_files() == before
