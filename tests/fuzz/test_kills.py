"""A few dozen kills: nothing is lost, nothing is left. `make kill N=300` makes more of them, in more commands."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["train", "cache-latents", "flow-head", "evaluate"])
def test_a_killed_command_given_again_ends_as_an_undisturbed_one(command: str) -> None:
    line = [sys.executable, "-m", "tests.fuzz.kills", "8", "1", command]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=_ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{command}: 8 kills at ")
