"""The environment that a run records at each start and resume."""

from __future__ import annotations

import pathlib
import sys

from training.reporting.environment import read_sessions


def test_a_run_records_its_environment_at_each_start(two_runs: pathlib.Path) -> None:
    first, second = read_sessions(two_runs / "slow")
    assert (first["from_step"], second["from_step"]) == (0, 2)
    assert first["packages"]["torch"]
    assert first["command"] == sys.argv
    assert (first["processes"], first["threads"]) == (1, 1)
    assert first["device"]
