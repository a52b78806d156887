"""Fixtures for the tests of training commands: `mar train`, a small dataset, and finished runs."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers.artifacts import made_once
from tests.helpers.command_line import Command, Mar
from tests.helpers.tiny_runs import one_thread, resume, start, write_idx_dataset

_ROOT = pathlib.Path(__file__).parents[2]


def run_mar_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `mar` in a process of its own."""
    command = [sys.executable, "-m", "runtime.cli.main", *(str(argument) for argument in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def error_line(err: str) -> str:
    """The one line of an error: no traceback, nothing before and nothing after it."""
    [line] = err.splitlines()
    assert line.startswith("mar: ")
    assert len(line) < 400
    return line


@pytest.fixture
def train(mar: Mar) -> Command:
    """`mar train` in this process, because importing torch in another takes seconds."""
    return functools.partial(mar, "train")


@pytest.fixture(scope="session")
def two_class_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Ten images of 8x8 pixels in two classes. Read only."""
    return made_once(
        tmp_path_factory, "two-class-data", lambda folder: write_idx_dataset(folder, images=10, side=8, classes=2)
    )


@pytest.fixture(scope="session")
def two_step_run(tmp_path_factory: pytest.TempPathFactory, two_class_data: pathlib.Path) -> pathlib.Path:
    """A run of two steps, made by the command in a process of its own. Read only."""

    def train_in_a_process(folder: pathlib.Path) -> None:
        out = folder / "new" / "run"
        done = run_mar_process(
            *("train", "--model", "pixel_small", "--data", two_class_data, "--out", out, "--image-size", 8),
            *("--steps", 2, "--batch-size", 4, "--sample-every", 2, "--checkpoint-every", 2, "--warmup-steps", 0),
            *("--threads", 1, "--no-flip", "--seed", 3, "--learning-rate", 1e-3, "--ema-rate", 0.5),
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr

    return made_once(tmp_path_factory, "two-step-run", train_in_a_process) / "new" / "run"


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the run `fast`, the run `slow` of two sessions, and a folder that is no run. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_idx_dataset(tmp_path_factory.mktemp("data"))
    with one_thread():
        start(folder / "fast", data, 4, learning_rate=0.01).train()
        start(folder / "slow", data, 2).train()
        resume(folder / "slow", steps=5).train()
    (folder / "notes").mkdir()
    return folder
