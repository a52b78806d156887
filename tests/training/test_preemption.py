"""SIGTERM and Ctrl-C: the step is finished, the run is saved, and resuming continues it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Iterable, Iterator
from typing import cast

import pytest

from tests.helpers.tiny_runs import (
    one_sentence,
    resume,
    start,
)
from tests.helpers.training_runs import STATE, assert_same_run
from training.checkpoints import checkpoint
from training.data.loader import MicroBatch
from training.loop.mar_trainer import MarTrainer
from training.loop.optimizer_step import StepResult
from training.preemption import PreemptedError


def _signalled(trainer: MarTrainer, at_step: int, *signals: signal.Signals, readers: bool = False) -> None:
    """Have `signals` come to this process, or to those that read ahead of it, in the middle of a step."""
    update = trainer.train_step.update

    def interrupted(step: int, batches: Iterable[MicroBatch]) -> StepResult:
        if step == at_step:
            processes = [child.pid for child in multiprocessing.active_children()] if readers else [os.getpid()]
            for process, number in itertools.product(processes, signals):
                os.kill(cast(int, process), number)
        return update(step, batches)

    trainer.train_step.update = interrupted  # type: ignore[method-assign]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """In the background of a script, pytest inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize(("by", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_after_the_step_and_exits_and_the_run_resumes(
    finished_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path, by: signal.Signals, code: int
) -> None:
    trainer, before = start(tmp_path / "run", training_images, 8), signal.getsignal(by)
    _signalled(trainer, 2, by)
    with pytest.raises(PreemptedError, match=rf"stopped by {by.name} after step 3 of 8.*--resume") as caught:
        trainer.train()
    one_sentence(caught)
    assert caught.value.exit_code == code
    assert (tmp_path / "run" / "loss.png").exists()
    assert signal.getsignal(by) == before
    assert checkpoint.saved_step(tmp_path / "run" / STATE) == 3
    resume(tmp_path / "run").train()
    assert_same_run(tmp_path / "run", finished_run)


@pytest.mark.usefixtures("_interruptible")
def test_a_second_ctrl_c_ends_a_run_at_once_and_a_second_sigterm_does_not(
    training_images: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = start(tmp_path / "run", training_images, 8)
    _signalled(trainer, 2, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(PreemptedError):
        trainer.train()
    assert "Ctrl-C" not in capfd.readouterr().err
    trainer = resume(tmp_path / "run")
    _signalled(trainer, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert checkpoint.saved_step(tmp_path / "run" / STATE) == 3


def test_worker_processes_ignore_signals(
    training_images: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A terminal sends a Ctrl-C to all processes alike."""
    trainer = start(tmp_path / "run", training_images, 8, workers=1)
    _signalled(trainer, 2, signal.SIGTERM, signal.SIGINT, readers=True)
    trainer.train()
    assert trainer.step == 8
    assert "Ctrl-C" not in capfd.readouterr().err


def test_an_ignored_signal_stays_ignored(training_images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A Ctrl-C in a script is not meant for what the script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = start(tmp_path / "run", training_images, 3)
        _signalled(trainer, 1, signal.SIGINT)
        trainer.train()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert trainer.step == 3
