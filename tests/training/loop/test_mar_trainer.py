"""Runs: that resuming changes nothing, that a kill or a full disk loses nothing, that training is as described."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TextIO, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import CheckpointError, ConfigError, DataError, MarError
from tests.helpers.tiny_runs import (
    TINY,
    Poisoned,
    logged,
    one_sentence,
    one_thread,
    randomized,
    resume,
    skipped_steps,
    start,
    tiny_training,
    write_idx_dataset,
)
from training.checkpoints import checkpoint
from training.checkpoints.tensor_files import read_safetensors
from training.config import TrainConfig
from training.data.datasets import open_dataset
from training.data.latent_dataset import LatentDataset
from training.data.loader import MicroBatch
from training.loop.mar_trainer import MarTrainer
from training.loop.optimizer_step import StepResult
from training.loop.state import save_state
from training.preemption import PreemptedError

_ROOT = pathlib.Path(__file__).parents[3]
_STATE, _WEIGHTS, _LOG = "training-state.safetensors", "model.safetensors", "log.jsonl"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: pathlib.Path) -> pathlib.Path:
    """A run of 8 steps that nothing has interrupted. Read only; copy it before going on with it."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    with one_thread():
        start(run, data, 8).train()
    return run


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory, data: pathlib.Path) -> pathlib.Path:
    """The same run, stopped after 4 steps. Read only."""
    run = tmp_path_factory.mktemp("runs") / "half"
    with one_thread():
        start(run, data, 4).train()
    return run


def _copy(run: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    shutil.copytree(run, to)
    return to


def _same_tensors(one: pathlib.Path, other: pathlib.Path) -> bool:
    ours, theirs = read_safetensors(one), read_safetensors(other)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def _assert_same_run(run: pathlib.Path, expected: pathlib.Path) -> None:
    """Every loss, every gradient, every weight, and all that a further step would need, to the last bit."""
    for key in ("loss", "gradient_norm"):
        assert logged(run, key) == logged(expected, key)
    for file in (_STATE, _WEIGHTS):
        assert _same_tensors(run / file, expected / file), file
        assert checkpoint.saved_step(run / file) == checkpoint.saved_step(expected / file)


# Resuming


def test_a_resumed_run_is_the_uninterrupted_one(
    finished: pathlib.Path, half_done: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(half_done, tmp_path / "run")
    assert sorted(logged(run, "loss")) == [1, 2, 3, 4]
    torch.manual_seed(123)  # a new process would have another global state too
    resume(run, steps=8).train()
    assert sorted(logged(run, "loss")) == [1, 2, 3, 4, 5, 6, 7, 8]
    _assert_same_run(run, finished)


def test_every_step_of_a_run_draws_something_else_and_moves_every_weight(
    finished: pathlib.Path, half_done: pathlib.Path
) -> None:
    """Or resuming to the same numbers would prove nothing."""
    assert len(set(logged(finished, "loss").values())) == 8
    early, late = (read_safetensors(run / _STATE) for run in (half_done, finished))
    assert [name for name in late if torch.equal(early[name], late[name])] == []


def test_a_kill_past_the_last_checkpoint_repeats_the_lost_steps(
    finished: pathlib.Path, half_done: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The log of a killed run is longer than its state, and its last line is torn."""
    run = _copy(half_done, tmp_path / "run")
    with (run / _LOG).open("a") as log:
        log.write(json.dumps({"step": 5, "loss": 77.0, "gradient_norm": 1.0, "images_per_second": 1.0}) + "\n")
        log.write(json.dumps({"step": 6, "loss": 78.0, "gradient_norm": 1.0, "images_per_second": 1.0}) + "\n")
        log.write('{"step": 7, "lo')
    resume(run, steps=8).train()
    _assert_same_run(run, finished)


def test_a_kill_before_the_first_checkpoint_starts_again_from_the_same_weights(
    finished: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    start(run, data, 8)  # killed before its first step: nothing but its config is there
    assert not (run / _STATE).exists()
    torch.manual_seed(123)
    resume(run).train()
    _assert_same_run(run, finished)


def test_resuming_changes_only_what_it_is_told_to(half_done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = _copy(half_done, tmp_path / "run")
    before = checkpoint.read_run_config(run)
    assert resume(run).config.training.steps == 4
    assert checkpoint.read_run_config(run) == before
    assert resume(run, steps=6).config.training.steps == 6
    after = checkpoint.read_run_config(run)
    assert after == {**before, "training": {**before["training"], "steps": 6}}


def test_resuming_a_finished_run_changes_neither_its_log_nor_its_weights(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(finished, tmp_path / "run")
    resume(run).train()
    assert (run / _LOG).read_text() == (finished / _LOG).read_text()
    _assert_same_run(run, finished)


@pytest.mark.parametrize(
    ("file", "share"), [(_STATE, 0.0), (_STATE, 0.01), (_STATE, 0.5), (_STATE, 0.99), ("config.json", 0.5)]
)
def test_a_run_with_a_truncated_file_is_refused(
    half_done: pathlib.Path, tmp_path: pathlib.Path, file: str, share: float
) -> None:
    run = _copy(half_done, tmp_path / "run")
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as caught:
        resume(run, steps=8)
    assert str(run / file) in one_sentence(caught)


def test_what_is_told_of_a_truncated_file_helps(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = _copy(finished, tmp_path / "run")
    (run / _WEIGHTS).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=f"mar train --resume {run} writes it again") as caught:
        checkpoint.load_checkpoint(run)
    one_sentence(caught)
    resume(run)
    checkpoint.load_checkpoint(run)
    (run / _STATE).write_bytes(b"torn")
    with pytest.raises(
        CheckpointError, match=r"delete it to train from the first step on.*model\.safetensors"
    ) as caught:
        resume(run)
    one_sentence(caught)
    checkpoint.load_checkpoint(run)
    (run / _STATE).unlink()
    resume(run).train()
    _assert_same_run(run, finished)


def test_a_state_that_names_no_step_is_refused(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    checkpoint.save_weights(run / _STATE, read_safetensors(run / _STATE))
    with pytest.raises(CheckpointError, match="names no step") as caught:
        resume(run, steps=8)
    assert str(run / _STATE) in one_sentence(caught)


def test_the_state_of_another_model_is_refused(
    half_done: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(half_done, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["model"]["decoder_embed_dim"] = 32
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        resume(run, steps=8)
    assert str(run / _STATE) in one_sentence(caught)


@pytest.mark.parametrize("name", ["model.z_proj.bias", "average.z_proj.bias", "exp_avg.z_proj.bias"])
def test_a_state_with_a_tensor_of_another_shape_is_refused(
    half_done: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    """One that could be broadcast, too."""
    run = _copy(half_done, tmp_path / "run")
    state = read_safetensors(run / _STATE)
    checkpoint.save_weights(run / _STATE, state | {name: torch.zeros(1)}, {"step": "4"})
    with pytest.raises(CheckpointError) as caught:
        resume(run, steps=8)
    assert str(run / _STATE) in one_sentence(caught)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model", []),
        ("training", None),
        ("training", []),
        ("training", {"steps": 8, "epochs": 3}),
        ("training", {"batch_size": 8}),
        ("training", {"steps": 8, "learning_rate": "fast"}),
        ("training", {"steps": 8, "flip": 1}),
        ("model", {"img_size": 13}),
        ("data", 5),
    ],
)
def test_a_run_whose_config_is_none_is_refused(
    half_done: pathlib.Path, tmp_path: pathlib.Path, key: str, value: object
) -> None:
    run = _copy(half_done, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError) as caught:
        resume(run)
    assert str(run / "config.json") in one_sentence(caught)


def test_resuming_what_is_no_run_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        resume(tmp_path / "nowhere")
    one_sentence(caught)


def test_resuming_after_the_data_has_gone_is_refused(half_done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = _copy(half_done, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match="gone") as caught:
        resume(run, steps=8)
    one_sentence(caught)


def test_resuming_on_data_with_more_classes_than_the_model_is_refused(
    half_done: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(half_done, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    other = write_idx_dataset(tmp_path / "other", classes=6)
    (run / "config.json").write_text(json.dumps({**config, "data": str(other)}))
    with pytest.raises(MarError, match="classes") as caught:
        resume(run, steps=8).train()
    one_sentence(caught)


def test_a_finished_run_whose_log_is_lost_can_still_be_resumed(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = _copy(finished, tmp_path / "run")
    (run / _LOG).unlink()
    resume(run).train()
    resume(run, steps=9).train()
    assert sorted(logged(run, "loss")) == [9]


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
@pytest.mark.parametrize(("by", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_exits_and_the_run_goes_on_where_it_was(
    finished: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, by: signal.Signals, code: int
) -> None:
    trainer, before = start(tmp_path / "run", data, 8), signal.getsignal(by)
    _signalled(trainer, 2, by)
    with pytest.raises(PreemptedError, match=rf"stopped by {by.name} after step 3 of 8.*--resume") as caught:
        trainer.train()
    one_sentence(caught)
    assert caught.value.exit_code == code
    assert signal.getsignal(by) == before
    assert checkpoint.saved_step(tmp_path / "run" / _STATE) == 3
    resume(tmp_path / "run").train()
    _assert_same_run(tmp_path / "run", finished)


@pytest.mark.usefixtures("_interruptible")
def test_a_second_ctrl_c_ends_a_run_at_once_and_a_second_sigterm_does_not(
    data: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = start(tmp_path / "run", data, 8)
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
    assert checkpoint.saved_step(tmp_path / "run" / _STATE) == 3


def test_who_reads_ahead_leaves_signals_to_the_trainer(
    data: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A terminal sends a Ctrl-C to all processes alike."""
    trainer = start(tmp_path / "run", data, 8, workers=1)
    _signalled(trainer, 2, signal.SIGTERM, signal.SIGINT, readers=True)
    trainer.train()
    assert trainer.step == 8
    assert "Ctrl-C" not in capfd.readouterr().err


def test_what_is_ignored_stays_ignored(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A Ctrl-C in a script is not meant for what the script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = start(tmp_path / "run", data, 3)
        _signalled(trainer, 1, signal.SIGINT)
        trainer.train()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert trainer.step == 3


@pytest.mark.parametrize("settings", [{"workers": 2}, {"gradient_checkpointing": True}])
def test_what_saves_time_or_memory_changes_nothing(
    finished: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, settings: dict[str, Any]
) -> None:
    """To the last bit, dropout included."""
    start(tmp_path / "run", data, 8, **settings).train()
    _assert_same_run(tmp_path / "run", finished)


def test_compiled_blocks_train_to_the_same_losses(
    finished: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As traced; what a compiler makes of it is PyTorch's. Every kind of block is compiled, for all sizes at once."""
    compiled: list[str] = []

    def trace(function: Any, **settings: Any) -> Any:
        compiled.append(f"{type(function.__self__).__name__}.{function.__name__}")
        return compile_(function, **settings, backend="eager")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    start(tmp_path / "run", data, 2, compile=True).train()
    assert set(compiled) == {"Block._call_impl", "ResidualBlock._call_impl", "Block.rows"}
    first_two = {step: loss for step, loss in logged(finished, "loss").items() if step <= 2}
    assert logged(tmp_path / "run", "loss") == pytest.approx(first_two, rel=1e-5)
    assert read_safetensors(tmp_path / "run" / _WEIGHTS).keys() == read_safetensors(finished / _WEIGHTS).keys()


# What a run leaves behind


def _is_flat(path: pathlib.Path) -> bool:
    with Image.open(path) as image:
        return bool(np.ptp(np.asarray(image.convert("L"))) == 0)


def test_a_run_leaves_its_config_weights_state_log_samples_and_curve(finished: pathlib.Path) -> None:
    names = {path.name for path in finished.iterdir()}
    files = {"config.json", "environment.json", _WEIGHTS, _STATE, _LOG, "loss.png"}
    assert names == files | {"samples", "tensorboard"}
    assert [path.name for path in (finished / "samples").iterdir()] == ["step-000008.png"]
    assert any((finished / "tensorboard").iterdir())


@pytest.mark.parametrize("name", ["samples/step-000008.png", "loss.png"])
def test_the_images_of_a_run_open_and_are_not_flat(finished: pathlib.Path, name: str) -> None:
    assert not _is_flat(finished / name)


def test_samples_show_two_images_of_each_class_that_are_not_flat_and_not_alike(finished: pathlib.Path) -> None:
    with Image.open(finished / "samples" / "step-000008.png") as image:
        sheet = np.asarray(image.convert("L"))
    # Margins of 4, captions of 14, images of 12 pixels enlarged to 96.
    assert sheet.shape == (2 * (96 + 14 + 4) + 4, 3 * (96 + 4) + 4)
    cells = [sheet[4 + 114 * row :, 4 + 100 * column :][:96, :96] for row in range(2) for column in range(3)]
    assert all(np.ptp(cell) > 0 for cell in cells)
    assert len({cell.tobytes() for cell in cells}) == 6


def test_samples_and_checkpoints_come_as_often_as_asked(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    seen: list[int | None] = []
    trainer = start(run, data, 5, sample_every=2, checkpoint_every=3)
    update = trainer.train_step.update

    def watched(step: int, batches: Iterable[MicroBatch]) -> StepResult:
        seen.append(checkpoint.saved_step(run / _STATE) if (run / _STATE).exists() else 0)
        return update(step, batches)

    monkeypatch.setattr(trainer.train_step, "update", watched)
    trainer.train()
    assert seen == [0, 0, 0, 3, 3]  # at the start of each step
    assert checkpoint.saved_step(run / _STATE) == 5
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step-000002.png",
        "step-000004.png",
        "step-000005.png",
    ]


def test_the_config_of_a_run_tells_all_that_made_it(finished: pathlib.Path, data: pathlib.Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["model"] == TINY.to_dict()
    assert config["tokenizer"] == "pixel"
    assert config["class_names"] == ["0", "1", "2"]
    assert config["data"] == str(data)
    assert TrainConfig(**config["training"]) == tiny_training(8)


def test_the_model_takes_channels_and_classes_from_the_data(tmp_path: pathlib.Path) -> None:
    data = write_idx_dataset(tmp_path / "data", classes=7)
    assert start(tmp_path / "run", data, 1).train_step.model.config.class_num == 7
    folder = tmp_path / "folder"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / name / "0.png")
    color = start(tmp_path / "to_rgb", folder, 1, batch_size=2).train_step.model.config
    assert (color.class_num, color.vae_embed_dim) == (2, 3)


def test_the_log_has_a_finite_loss_and_norm_and_a_rate_for_each_step(finished: pathlib.Path) -> None:
    for key in ("loss", "gradient_norm", "images_per_second"):
        values = list(logged(finished, key).values())
        assert len(values) == 8
        assert np.isfinite(values).all()
        assert min(values) > 0


def test_the_weights_of_a_run_are_the_average_and_load_as_a_checkpoint(finished: pathlib.Path) -> None:
    state, weights = read_safetensors(finished / _STATE), read_safetensors(finished / _WEIGHTS)
    assert all(torch.equal(weights[name], state[f"average.{name}"]) for name in weights)
    assert not all(torch.equal(weights[name], state[f"model.{name}"]) for name in weights)
    loaded = checkpoint.load_checkpoint(finished)
    assert all(torch.equal(weights[name], value) for name, value in loaded.model.state_dict().items())
    assert (loaded.model.config, loaded.class_names, loaded.tokenizer) == (TINY, ("0", "1", "2"), "pixel")
    assert not loaded.model.training


def test_starting_over_an_existing_run_is_refused_and_changes_nothing(
    half_done: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(half_done, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(MarError, match="--resume") as caught:
        start(run, data, 8)
    assert str(run) in one_sentence(caught)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# How it trains

_MATRICES_OF_THE_TRANSFORMER = {
    "fake_latent",
    "encoder_pos_embed_learned",
    "mask_token",
    "decoder_pos_embed_learned",
    "diffusion_pos_embed_learned",
    "class_emb.weight",
    "z_proj.weight",
    "decoder_embed.weight",
    *(
        f"{half}_blocks.0.{layer}.weight"
        for half in ("encoder", "decoder")
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ),
}


def test_weight_decay_falls_on_the_matrices_of_the_transformer_and_on_nothing_else(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = start(tmp_path / "run", data, 1, weight_decay=0.03)
    names = {parameter: name for name, parameter in trainer.train_step.model.named_parameters()}
    grouped = [
        (names[parameter], group["weight_decay"])
        for group in trainer.train_step.optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(grouped) == len(names)
    assert dict(grouped) == {name: 0.03 if name in _MATRICES_OF_THE_TRANSFORMER else 0.0 for name in names.values()}


def _weights_after_each_step(trainer: MarTrainer) -> Iterator[dict[str, Tensor]]:
    batches = trainer._batches()
    for step in range(trainer.config.training.steps):
        trainer.train_step.update(step, [next(batches)])
        yield {
            name: parameter.detach().double().clone() for name, parameter in trainer.train_step.model.named_parameters()
        }


# The rate grows as (1 + n) / (10 + n) up to the one asked for, which these three reach never, at once and on the way.
@pytest.mark.parametrize(
    ("rate", "rates"),
    [(0.9999, (1 / 10, 2 / 11, 3 / 12)), (0.05, (0.05, 0.05, 0.05)), (0.2, (1 / 10, 2 / 11, 0.2)), (0.0, (0, 0, 0))],
)
def test_the_average_of_the_weights_is_the_exponential_one(
    data: pathlib.Path, tmp_path: pathlib.Path, rate: float, rates: tuple[float, float, float]
) -> None:
    trainer = start(tmp_path / "run", data, 3, ema_rate=rate)
    average = {
        name: parameter.detach().double().clone() for name, parameter in trainer.train_step.model.named_parameters()
    }
    for kept, weights in zip(rates, _weights_after_each_step(trainer), strict=True):
        average = {name: kept * average[name] + (1 - kept) * weights[name] for name in average}
    for name, expected in average.items():
        torch.testing.assert_close(trainer.train_step.average[name].double(), expected, rtol=1e-6, atol=1e-8)


def test_the_learning_rate_warms_up_linearly_and_then_stays(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    trainer = start(tmp_path / "run", data, 5, learning_rate=0.01, warmup_steps=4)
    rates = [
        {group["lr"] for group in trainer.train_step.optimizer.param_groups} for _ in _weights_after_each_step(trainer)
    ]
    assert rates == [{0.0025}, {0.005}, {0.0075}, {0.01}, {0.01}]


def test_gradients_are_clipped_to_the_norm_asked_for(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    trainer = start(tmp_path / "run", data, 1, gradient_clip=0.01)
    outcome = trainer.train_step.update(0, trainer._batches())
    assert outcome.gradient_norm > 0.01  # what is logged is the norm before
    squares = sum(float(parameter.grad.double().square().sum()) for parameter in trainer.train_step.model.parameters())
    assert squares**0.5 == pytest.approx(0.01, rel=1e-3)


def _examples(trainer: MarTrainer) -> list[list[int]]:
    """Those of each step."""
    return [part.examples.tolist() for part in trainer._batches()]


def test_every_epoch_takes_each_example_at_most_once_and_in_an_order_of_its_own(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    taken = _examples(start(tmp_path / "run", data, 6, batch_size=5))  # 12 images: two whole batches, two left out
    epochs = [taken[first] + taken[first + 1] for first in (0, 2, 4)]
    for epoch in epochs:
        assert max(Counter(epoch).values()) == 1
        assert set(epoch) <= set(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) > 1  # those left out change, so none is left out for ever


def test_a_batch_as_large_as_the_data_is_the_data(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    taken = _examples(start(tmp_path / "run", data, 2, batch_size=12))
    assert [sorted(batch) for batch in taken] == [list(range(12))] * 2


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_if_asked_and_keep_their_labels(
    data: pathlib.Path, tmp_path: pathlib.Path, flip: bool
) -> None:
    trainer = start(tmp_path / "run", data, 1, batch_size=12, flip=flip)
    known = [image[..., 0] / 127.5 - 1 for image in open_dataset(data, 12).images(np.arange(12))]
    [(batch, _, _)] = trainer._batches()
    mirrored = 0
    for latent, label in zip(batch.latents.numpy()[:, 0], batch.labels.tolist(), strict=True):
        straight = [i for i, image in enumerate(known) if np.allclose(latent, image, atol=1e-6)]
        turned = [i for i, image in enumerate(known) if np.allclose(latent, image[:, ::-1], atol=1e-6)]
        assert len(straight + turned) == 1
        assert label in ((straight + turned)[0] % 3, TINY.class_num)
        mirrored += len(turned)
    assert 0 < mirrored < 12 if flip else mirrored == 0


def test_bf16_takes_steps_with_finite_losses_near_those_of_fp32(
    finished: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    start(run, data, 2, precision="bf16").train()
    losses = logged(run, "loss")
    assert np.isfinite(list(losses.values())).all()
    assert losses[2] != logged(finished, "loss")[2]  # it was bf16 indeed
    assert losses[1] == pytest.approx(logged(finished, "loss")[1], rel=0.02)
    assert {tensor.dtype for tensor in read_safetensors(run / _STATE).values()} == {torch.float32}


def test_training_lowers_the_loss(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    start(run, data, 80, learning_rate=5e-3, checkpoint_every=80).train()
    losses = list(logged(run, "loss").values())
    assert np.median(losses[-40:]) < 0.8 * np.median(losses[:10])


# What goes wrong


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", -1),
        ("batch_size", 0),
        ("checkpoint_every", 0),
        ("sample_every", -5),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("gradient_clip", 0.0),
        ("gradient_clip", float("nan")),
        ("ema_rate", 1.0),
        ("ema_rate", -0.1),
        ("ema_rate", float("nan")),
        ("weight_decay", -0.1),
        ("weight_decay", float("nan")),
        ("weight_decay", float("inf")),
        ("warmup_steps", -1),
        ("precision", "fp16"),
        ("seed", -1),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        tiny_training(**{"steps": 1, field: value})
    one_sentence(caught)


def test_a_batch_larger_than_the_data_is_refused_and_leaves_the_folder_free(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"13.*12") as caught:
        start(run, data, 1, batch_size=13).train()
    one_sentence(caught)
    start(run, data, 1, batch_size=12)  # the corrected call works


def test_a_step_whose_loss_is_not_finite_is_skipped_counted_and_reported_with_its_examples(
    data: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    trainer = start(run, data, 6, accumulate=2)  # three steps an epoch, so example 5 comes twice
    parts = _examples(trainer)
    taken = [parts[first : first + 2] for first in range(0, 12, 2)]
    trainer.dataset = cast(LatentDataset, Poisoned(trainer.dataset, bad=5))
    trainer.train()
    bad = {step: part for step, parts in enumerate(taken, start=1) for part in parts if 5 in part}
    assert len(bad) == 2
    assert {step: told["examples"] for step, told in skipped_steps(run).items()} == bad
    assert [told["so_far"] for told in skipped_steps(run).values()] == [1, 2]
    assert sorted(logged(run, "loss")) == sorted({1, 2, 3, 4, 5, 6} - bad.keys())
    told = capsys.readouterr().err
    for step in bad:
        assert f"step {step}: skipped" in told
    assert all(tensor.isfinite().all() for tensor in read_safetensors(run / _STATE).values())


def test_a_skipped_step_changes_neither_weights_nor_their_average_nor_moments(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = start(tmp_path / "run", data, 3)
    batches = list(trainer._batches())
    trainer.train_step.update(0, batches[:1])
    save_state(tmp_path / "run", trainer.train_step, 1)
    before = read_safetensors(tmp_path / "run" / _STATE)
    batch, examples, _ = batches[1]
    outcome = trainer.train_step.update(1, [MicroBatch(batch._replace(noise=batch.noise / 0), examples)])
    assert not outcome.applied
    assert outcome.suspects == tuple(examples.tolist())
    save_state(tmp_path / "run", trainer.train_step, 2)
    after = read_safetensors(tmp_path / "run" / _STATE)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_gradient_that_is_not_finite_skips_the_step_too_and_suspects_all_of_it(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = start(tmp_path / "run", data, 1)
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


def test_a_run_with_a_skipped_step_resumes_to_the_same_weights(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The optimizer counts the steps that were taken, not those of the run."""
    whole, parts = (start(tmp_path / name, data, 6) for name in ("whole", "parts"))
    whole.dataset = parts.dataset = cast(LatentDataset, Poisoned(whole.dataset, bad=_examples(whole)[1][0]))
    whole.train()
    parts.config = dataclasses.replace(parts.config, training=tiny_training(4))
    parts.train()
    again = resume(tmp_path / "parts", steps=6)
    assert again.train_step.skipped > 0
    again.dataset = parts.dataset
    again.train()
    _assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_ten_skipped_steps_in_a_row_stop_the_run_and_keep_the_last_checkpoint(
    half_done: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(half_done, tmp_path / "run")
    trainer = resume(run, steps=30, checkpoint_every=30)
    with torch.no_grad():
        trainer.train_step.model.decoder_norm.weight.fill_(float("nan"))
    with pytest.raises(MarError, match=r"10 steps in a row.*nan.*step 14.*--learning-rate") as caught:
        trainer.train()
    one_sentence(caught)
    assert sorted(logged(run, "loss")) == [1, 2, 3, 4]
    assert sorted(skipped_steps(run)) == list(range(5, 15))
    assert _same_tensors(run / _STATE, half_done / _STATE)
    assert _same_tensors(run / _WEIGHTS, half_done / _WEIGHTS)


def test_nine_skipped_steps_in_a_row_and_a_good_one_start_the_count_again(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(tmp_path / "run", data, 19)
    update = trainer.train_step.update

    def spoilt(step: int, batches: Iterable[MicroBatch]) -> StepResult:
        [(batch, examples, _)] = batches
        return update(step, [MicroBatch(batch if step == 9 else batch._replace(noise=batch.noise / 0), examples)])

    monkeypatch.setattr(trainer.train_step, "update", spoilt)
    trainer.train()
    assert sorted(logged(tmp_path / "run", "loss")) == [10]


def test_a_checkpoint_is_never_replaced_by_weights_that_are_not_finite(
    half_done: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A step can have a finite loss and ruin the weights; the loss tells only one step later."""
    run = _copy(half_done, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["training"] |= {"learning_rate": 1e39, "checkpoint_every": 1}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(MarError) as caught:
        resume(run, steps=8).train()
    one_sentence(caught)
    for file in (_STATE, _WEIGHTS):
        assert all(tensor.isfinite().all() for tensor in read_safetensors(run / file).values()), file


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


def _assert_nothing_lost(run: pathlib.Path, before: pathlib.Path, finished: pathlib.Path) -> None:
    """The failed save left the old checkpoint and no temporary file, and the run can go on from there."""
    for file in (_STATE, _WEIGHTS):
        assert (run / file).read_bytes() == (before / file).read_bytes()
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    resume(run, steps=8).train()
    _assert_same_run(run, finished)


@pytest.mark.parametrize("failure", _OUT_OF_SPACE, ids=["os", "safetensors"])
def test_a_full_disk_while_saving_is_one_error_and_keeps_the_last_checkpoint(
    half_done: pathlib.Path,
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise failure

    run = _copy(half_done, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(MarError, match="No space left on device") as caught:
        patched.setattr("training.checkpoints.checkpoint.save_file", fail)
        resume(run, steps=8).train()
    assert str(run / _STATE) in one_sentence(caught)
    _assert_nothing_lost(run, half_done, finished)


def test_a_disk_that_is_full_from_the_start_is_told_with_what_to_do_then(
    half_done: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise _OUT_OF_SPACE[0]

    old = _copy(half_done, tmp_path / "old")
    monkeypatch.setattr("training.loop.training_loop.record_environment", fail)
    with pytest.raises(MarError, match="free some space and start again") as caught:
        start(tmp_path / "new", data, 8).train()
    one_sentence(caught)
    assert not (tmp_path / "new").exists()
    with pytest.raises(MarError, match="free some space and resume"):
        resume(old, steps=8).train()
    assert (old / _STATE).exists()


def test_a_failure_between_the_two_files_of_a_checkpoint_is_made_good_by_resuming(
    half_done: pathlib.Path, finished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is new and the averaged weights, which are what a run is for, are old."""

    def save_state_alone(tensors: dict[str, Tensor], path: pathlib.Path, metadata: dict[str, str]) -> None:
        if path.name.startswith(".model"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata)

    run = _copy(half_done, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(MarError, match=_WEIGHTS):
        patched.setattr("training.checkpoints.checkpoint.save_file", save_state_alone)
        resume(run, steps=8).train()
    assert checkpoint.saved_step(run / _STATE) == 8
    assert (run / _WEIGHTS).read_bytes() == (half_done / _WEIGHTS).read_bytes()
    resume(run).train()
    _assert_same_run(run, finished)


def test_a_write_that_the_system_refuses_halfway_keeps_the_last_checkpoint(
    half_done: pathlib.Path, finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(half_done, tmp_path / "run")
    limit = (run / _STATE).stat().st_size // 2
    with _small_disk(limit), pytest.raises(MarError, match="File too large") as caught:
        resume(run, steps=8).train()
    assert str(run / _STATE) in one_sentence(caught)
    _assert_nothing_lost(run, half_done, finished)


def test_a_log_on_a_full_disk_is_one_error_too(
    half_done: pathlib.Path, finished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_full(path: pathlib.Path, step: int) -> TextIO:
        return pathlib.Path("/dev/full").open("w")

    run = _copy(half_done, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(MarError, match="No space left on device") as caught:
        patched.setattr("training.reporting.reporter.open_log", open_full)
        resume(run, steps=8).train()
    one_sentence(caught)
    _assert_nothing_lost(run, half_done, finished)


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


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_checkpoint_to_resume_from(
    half_done: pathlib.Path, finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = _copy(half_done, tmp_path / "run")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_IN_A_SAVE, str(run)], cwd=_ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    for file in (_STATE, _WEIGHTS):
        assert (run / file).read_bytes() == (half_done / file).read_bytes()
    checkpoint.load_checkpoint(run)
    resume(run, steps=8).train()
    _assert_same_run(run, finished)
