"""Steps whose loss or gradient is not finite: they are skipped, counted and reported."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import cast

import numpy as np
import pytest
import torch

from runtime.errors import MarError
from tests.helpers.tiny_runs import (
    Poisoned,
    logged,
    one_sentence,
    randomized,
    resume,
    skipped_steps,
    start,
    tiny_training,
)
from tests.helpers.training_runs import STATE, WEIGHTS, assert_same_run, copy_run, examples_by_step, same_tensors
from training.checkpoints.tensor_files import read_safetensors
from training.data.latent_dataset import LatentDataset
from training.data.loader import MicroBatch
from training.loop.optimizer_step import StepResult
from training.loop.state import save_state


def test_a_step_whose_loss_is_not_finite_is_skipped_counted_and_reported_with_its_examples(
    training_images: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    trainer = start(run, training_images, 6, accumulate=2)  # three steps an epoch, so example 5 comes twice
    parts = examples_by_step(trainer)
    taken = [parts[first : first + 2] for first in range(0, 12, 2)]
    trainer.dataset = cast(LatentDataset, Poisoned(trainer.dataset, bad=5))
    trainer.train()
    bad = {step: part for step, parts in enumerate(taken, start=1) for part in parts if 5 in part}
    assert len(bad) == 2
    assert {step: entry["examples"] for step, entry in skipped_steps(run).items()} == bad
    assert [entry["so_far"] for entry in skipped_steps(run).values()] == [1, 2]
    assert sorted(logged(run, "loss")) == sorted({1, 2, 3, 4, 5, 6} - bad.keys())
    output = capsys.readouterr().err
    for step in bad:
        assert f"step {step}: skipped" in output
    assert all(tensor.isfinite().all() for tensor in read_safetensors(run / STATE).values())


def test_a_skipped_step_changes_neither_weights_nor_their_average_nor_moments(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = start(tmp_path / "run", training_images, 3)
    batches = list(trainer._batches())
    trainer.train_step.update(0, batches[:1])
    save_state(tmp_path / "run", trainer.train_step, 1)
    before = read_safetensors(tmp_path / "run" / STATE)
    batch, examples, _ = batches[1]
    outcome = trainer.train_step.update(1, [MicroBatch(batch._replace(noise=batch.noise / 0), examples)])
    assert not outcome.applied
    assert outcome.suspects == tuple(examples.tolist())
    save_state(tmp_path / "run", trainer.train_step, 2)
    after = read_safetensors(tmp_path / "run" / STATE)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_gradient_that_is_not_finite_skips_the_step_and_suspects_all_its_examples(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = start(tmp_path / "run", training_images, 1)
    trainer.train_step.model.mask_token.register_hook(lambda gradient: gradient * float("inf"))
    [batch] = trainer._batches()
    with torch.no_grad():
        randomized(trainer.train_step.model)  # a fresh head sends no gradient back
    before = trainer.train_step.model.z_proj.weight.clone()
    outcome = trainer.train_step.update(0, [batch])
    assert np.isfinite(outcome.loss)
    assert not np.isfinite(outcome.gradient_norm)
    assert outcome.suspects == tuple(batch.examples.tolist())
    assert torch.equal(trainer.train_step.model.z_proj.weight, before)


def test_a_run_with_a_skipped_step_resumes_to_the_same_weights(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The optimizer counts the steps that were taken, not those of the run."""
    whole, parts = (start(tmp_path / name, training_images, 6) for name in ("whole", "parts"))
    whole.dataset = parts.dataset = cast(LatentDataset, Poisoned(whole.dataset, bad=examples_by_step(whole)[1][0]))
    whole.train()
    parts.config = dataclasses.replace(parts.config, training=tiny_training(4))
    parts.train()
    again = resume(tmp_path / "parts", steps=6)
    assert again.train_step.skipped > 0
    again.dataset = parts.dataset
    again.train()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_ten_skipped_steps_in_a_row_stop_the_run_and_keep_the_last_checkpoint(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    trainer = resume(run, steps=30, checkpoint_every=30)
    with torch.no_grad():
        trainer.train_step.model.decoder_norm.weight.fill_(float("nan"))
    with pytest.raises(MarError, match=r"10 steps in a row.*nan.*step 14.*--learning-rate") as caught:
        trainer.train()
    one_sentence(caught)
    assert sorted(logged(run, "loss")) == [1, 2, 3, 4]
    assert sorted(skipped_steps(run)) == list(range(5, 15))
    assert same_tensors(run / STATE, half_done_run / STATE)
    assert same_tensors(run / WEIGHTS, half_done_run / WEIGHTS)


def test_a_finite_step_after_nine_skipped_ones_resets_the_count(
    training_images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(tmp_path / "run", training_images, 19)
    update = trainer.train_step.update

    def spoilt(step: int, batches: Iterable[MicroBatch]) -> StepResult:
        [(batch, examples, _)] = batches
        return update(step, [MicroBatch(batch if step == 9 else batch._replace(noise=batch.noise / 0), examples)])

    monkeypatch.setattr(trainer.train_step, "update", spoilt)
    trainer.train()
    assert sorted(logged(tmp_path / "run", "loss")) == [10]


def test_a_checkpoint_is_never_replaced_by_weights_that_are_not_finite(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A step can have a finite loss and ruin the weights; the loss tells only one step later."""
    run = copy_run(half_done_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["training"] |= {"learning_rate": 1e39, "checkpoint_every": 1}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(MarError) as caught:
        resume(run, steps=8).train()
    one_sentence(caught)
    for file in (STATE, WEIGHTS):
        assert all(tensor.isfinite().all() for tensor in read_safetensors(run / file).values()), file
