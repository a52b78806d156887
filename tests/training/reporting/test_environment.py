"""The environment that a run records at each start and resume."""

from __future__ import annotations

import pathlib
import sys

import pytest

from training.distributed import Processes
from training.reporting.environment import ENVIRONMENT_FILE, read_sessions, record_environment


def test_a_run_records_its_environment_at_each_start(two_runs: pathlib.Path) -> None:
    first, second = read_sessions(two_runs / "slow")
    assert (first["from_step"], second["from_step"]) == (0, 2)
    assert first["packages"]["torch"]
    assert first["command"] == sys.argv
    assert (first["processes"], first["threads"]) == (1, 1)
    assert first["device"]


def test_no_secret_of_the_command_or_of_a_variable_is_recorded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["mar", "train", "--hf-token", "first-secret", "--data", "s3://me:second-secret@b"]
    )
    monkeypatch.setenv("WANDB_API_KEY", "third-secret")
    record_environment(tmp_path, Processes(), step=0)
    text = (tmp_path / ENVIRONMENT_FILE).read_text()
    assert "secret" not in text
    (session,) = read_sessions(tmp_path)
    assert session["command"] == ["mar", "train", "--hf-token", "***", "--data", "s3://***@b"]
