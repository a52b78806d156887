"""A few dozen kills: nothing is lost, nothing is left. `make kill N=300` makes more of them, in more commands."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_COMMANDS = ("train", "cache-latents", "flow-head", "evaluate")
_KILLS = 8  # of each


@pytest.fixture(scope="module")
def said() -> str:
    """What is printed of all commands, which one process forks, since its imports take seconds."""
    line = [sys.executable, "-m", "tests.fuzz.kills", str(_KILLS * len(_COMMANDS)), "1", *_COMMANDS]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=_ROOT)
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_killed_command_given_again_ends_as_an_undisturbed_one(said: str, command: str) -> None:
    lines = [line for line in said.splitlines() if line.startswith((f"{command}:", f"{command},"))]
    assert len(lines) == 1, said  # each fault would have a line of its own
    assert lines[0].startswith(f"{command}: {_KILLS} kills at "), said
