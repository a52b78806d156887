"""Writing that fails: a full disk or a kill loses nothing but the steps after the last checkpoint."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NoReturn, TextIO

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import MarError
from tests.helpers.tiny_runs import (
    one_sentence,
    resume,
    start,
)
from tests.helpers.training_runs import STATE, WEIGHTS, assert_same_run, copy_run
from training.checkpoints import checkpoint

_ROOT = pathlib.Path(__file__).parents[3]


_OUT_OF_SPACE = [  # as Python tells it, and as safetensors does
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@contextlib.contextmanager
def _small_disk(limit: int) -> Iterator[None]:
    """No file grows beyond `limit` bytes: the nearest to a full disk that needs no privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _assert_nothing_lost(run: pathlib.Path, before: pathlib.Path, finished_run: pathlib.Path) -> None:
    """The failed save left the old checkpoint and no temporary file, and the run can go on from there."""
    for file in (STATE, WEIGHTS):
        assert (run / file).read_bytes() == (before / file).read_bytes()
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    resume(run, steps=8).train()
    assert_same_run(run, finished_run)


@pytest.mark.parametrize("failure", _OUT_OF_SPACE, ids=["os", "safetensors"])
def test_a_full_disk_during_a_save_raises_one_error_and_keeps_the_last_checkpoint(
    half_done_run: pathlib.Path,
    finished_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise failure

    run = copy_run(half_done_run, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(MarError, match="No space left on device") as caught:
        patched.setattr("training.checkpoints.checkpoint.save_file", fail)
        resume(run, steps=8).train()
    assert str(run / STATE) in one_sentence(caught)
    _assert_nothing_lost(run, half_done_run, finished_run)


def test_the_error_of_a_disk_that_is_full_from_the_start_says_what_to_do(
    half_done_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise _OUT_OF_SPACE[0]

    old = copy_run(half_done_run, tmp_path / "old")
    monkeypatch.setattr("training.loop.training_loop.record_environment", fail)
    with pytest.raises(MarError, match="free some space and start again") as caught:
        start(tmp_path / "new", training_images, 8).train()
    one_sentence(caught)
    assert not (tmp_path / "new").exists()
    with pytest.raises(MarError, match="free some space and resume"):
        resume(old, steps=8).train()
    assert (old / STATE).exists()


def test_resuming_repairs_a_failure_between_the_two_files_of_a_checkpoint(
    half_done_run: pathlib.Path, finished_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is new and the averaged weights, which are what a run is for, are old."""

    def save_state_alone(tensors: dict[str, Tensor], path: pathlib.Path, metadata: dict[str, str]) -> None:
        if path.name == "model.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata)

    run = copy_run(half_done_run, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(MarError, match=WEIGHTS):
        patched.setattr("training.checkpoints.checkpoint.save_file", save_state_alone)
        resume(run, steps=8).train()
    assert checkpoint.saved_step(run / STATE) == 8
    assert (run / WEIGHTS).read_bytes() == (half_done_run / WEIGHTS).read_bytes()
    resume(run).train()
    assert_same_run(run, finished_run)


def test_a_write_that_fails_halfway_keeps_the_last_checkpoint(
    half_done_run: pathlib.Path, finished_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    limit = (run / STATE).stat().st_size // 2
    with _small_disk(limit), pytest.raises(MarError, match="File too large") as caught:
        resume(run, steps=8).train()
    assert str(run / STATE) in one_sentence(caught)
    _assert_nothing_lost(run, half_done_run, finished_run)


def test_a_log_on_a_full_disk_raises_one_error(
    half_done_run: pathlib.Path, finished_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_full(path: pathlib.Path, step: int) -> TextIO:
        return pathlib.Path("/dev/full").open("w")

    run = copy_run(half_done_run, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(MarError, match="No space left on device") as caught:
        patched.setattr("training.reporting.reporter.open_log", open_full)
        resume(run, steps=8).train()
    one_sentence(caught)
    _assert_nothing_lost(run, half_done_run, finished_run)


_KILLED_IN_A_SAVE = """
import os, pathlib, signal, sys
import torch
from safetensors.torch import save
from training.checkpoints import checkpoint
from training.loop.mar_trainer import MarTrainer

def save_half_and_die(tensors, path, metadata):
    content = save(tensors, metadata)
    pathlib.Path(path).write_bytes(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
checkpoint.save_file = save_half_and_die
MarTrainer.resume(pathlib.Path(sys.argv[1]), changes={'steps': 8}).train()
"""


def test_a_kill_during_a_save_leaves_the_last_checkpoint_to_resume_from(
    half_done_run: pathlib.Path, finished_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_IN_A_SAVE, str(run)], cwd=_ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    for file in (STATE, WEIGHTS):
        assert (run / file).read_bytes() == (half_done_run / file).read_bytes()
    checkpoint.load_checkpoint(run)
    resume(run, steps=8).train()
    assert_same_run(run, finished_run)
