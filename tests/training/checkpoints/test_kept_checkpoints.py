"""Checkpoints that a run keeps: each is a run folder, the oldest goes, and none takes space while it is the last."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests.helpers.tiny_runs import resume, start
from tests.helpers.training_runs import STATE, WEIGHTS, same_tensors
from training.checkpoints import checkpoint


def _kept(run: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_last_checkpoints_are_run_folders_of_their_own(
    training_images: pathlib.Path, finished_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    start(run, training_images, 8, checkpoint_every=2, keep=3).train()
    assert _kept(run) == ["step-000004", "step-000006", "step-000008"]
    for step in (4, 6, 8):
        kept = run / "checkpoints" / f"step-{step:06d}"
        assert checkpoint.saved_step(kept / WEIGHTS) == checkpoint.saved_step(kept / STATE) == step
        checkpoint.load_checkpoint(kept)
    assert (run / STATE).samefile(run / "checkpoints" / "step-000008" / STATE)
    again = run / "checkpoints" / "step-000004"
    resume(again).train()  # to step 8, from the state of step 4
    assert (again / STATE).exists()
    assert checkpoint.saved_step(run / "checkpoints" / "step-000006" / STATE) == 6
    assert checkpoint.saved_step(again / STATE) == 8
    assert same_tensors(again / WEIGHTS, finished_run / WEIGHTS)


def test_checkpoints_are_kept_where_files_cannot_have_two_names(
    training_images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: pathlib.Path, to: pathlib.Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    start(tmp_path / "run", training_images, 2, checkpoint_every=1, keep=2).train()
    assert _kept(tmp_path / "run") == ["step-000001", "step-000002"]
    checkpoint.load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000001")


def test_a_run_that_was_set_back_keeps_the_checkpoints_of_later_steps(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    start(run, training_images, 3, checkpoint_every=1, keep=2).train()
    assert _kept(run) == ["step-000002", "step-000003"]
    (run / STATE).unlink()
    resume(run, steps=1).train()
    assert _kept(run) == ["step-000001", "step-000002", "step-000003"]
