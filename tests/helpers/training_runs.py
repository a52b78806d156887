"""Runs of a tiny model that several tests compare with, and how they compare; `tests/training` has the fixtures."""

from __future__ import annotations

import pathlib
import shutil

import pytest
import torch

from tests.helpers.artifacts import made_once
from tests.helpers.tiny_runs import logged, start, write_idx_dataset
from training.checkpoints import checkpoint
from training.checkpoints.tensor_files import read_safetensors
from training.loop.mar_trainer import MarTrainer

STATE, WEIGHTS, LOG = "training-state.safetensors", "model.safetensors", "log.jsonl"


@pytest.fixture(scope="session")
def training_images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twelve images of three classes as IDX files. Read only."""
    return made_once(tmp_path_factory, "training-images", write_idx_dataset)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, training_images: pathlib.Path) -> pathlib.Path:
    """A run of 8 steps that nothing has interrupted. Read only; resume a copy of it."""
    return _run_of(8, training_images, tmp_path_factory)


@pytest.fixture(scope="session")
def half_done_run(tmp_path_factory: pytest.TempPathFactory, training_images: pathlib.Path) -> pathlib.Path:
    """The same run, stopped after 4 steps. Read only."""
    return _run_of(4, training_images, tmp_path_factory)


def _run_of(steps: int, images: pathlib.Path, factory: pytest.TempPathFactory) -> pathlib.Path:
    return made_once(factory, f"{steps}-steps", lambda folder: start(folder / "run", images, steps).train()) / "run"


def copy_run(run: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    shutil.copytree(run, to)
    return to


def same_tensors(file: pathlib.Path, other: pathlib.Path) -> bool:
    ours, theirs = read_safetensors(file), read_safetensors(other)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_same_run(run: pathlib.Path, expected: pathlib.Path) -> None:
    """Every loss, every gradient, every weight, and all that a further step would need, to the last bit."""
    for key in ("loss", "gradient_norm"):
        assert logged(run, key) == logged(expected, key)
    for file in (STATE, WEIGHTS):
        assert same_tensors(run / file, expected / file), file
        assert checkpoint.saved_step(run / file) == checkpoint.saved_step(expected / file)


def examples_by_step(trainer: MarTrainer) -> list[list[int]]:
    """The examples in each of this process's micro-batches."""
    return [part.examples.tolist() for part in trainer._batches()]
