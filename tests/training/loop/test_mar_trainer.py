"""The files of a run, and the settings and data that a run refuses."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.errors import ConfigError, MarError
from tests.helpers.tiny_runs import (
    TINY,
    logged,
    one_sentence,
    start,
    tiny_training,
    write_idx_dataset,
)
from tests.helpers.training_runs import LOG, STATE, WEIGHTS, copy_run
from training.checkpoints import checkpoint
from training.checkpoints.tensor_files import read_safetensors
from training.config import TrainConfig
from training.data.loader import MicroBatch
from training.loop.optimizer_step import StepResult


def _is_flat(path: pathlib.Path) -> bool:
    with Image.open(path) as image:
        return bool(np.ptp(np.asarray(image.convert("L"))) == 0)


def test_a_run_writes_its_config_weights_state_log_samples_and_curve(finished_run: pathlib.Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    files = {"config.json", "environment.json", WEIGHTS, STATE, LOG, "loss.png", "first-batch.png"}
    assert names == files | {"samples", "tensorboard"}
    assert [path.name for path in (finished_run / "samples").iterdir()] == ["step-000008.png"]
    assert any((finished_run / "tensorboard").iterdir())


@pytest.mark.parametrize("name", ["samples/step-000008.png", "loss.png", "first-batch.png"])
def test_the_images_of_a_run_open_and_are_not_flat(finished_run: pathlib.Path, name: str) -> None:
    assert not _is_flat(finished_run / name)


def test_samples_show_two_different_images_of_each_class_that_are_not_flat(finished_run: pathlib.Path) -> None:
    with Image.open(finished_run / "samples" / "step-000008.png") as image:
        sheet = np.asarray(image.convert("L"))
    # Margins of 4, captions of 14, images of 12 pixels enlarged to 96.
    assert sheet.shape == (2 * (96 + 14 + 4) + 4, 3 * (96 + 4) + 4)
    cells = [sheet[4 + 114 * row :, 4 + 100 * column :][:96, :96] for row in range(2) for column in range(3)]
    assert all(np.ptp(cell) > 0 for cell in cells)
    assert len({cell.tobytes() for cell in cells}) == 6


def test_samples_and_checkpoints_are_saved_at_the_configured_steps(
    training_images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    seen: list[int | None] = []
    trainer = start(run, training_images, 5, sample_every=2, checkpoint_every=3)
    update = trainer.train_step.update

    def watched(step: int, batches: Iterable[MicroBatch]) -> StepResult:
        seen.append(checkpoint.saved_step(run / STATE) if (run / STATE).exists() else 0)
        return update(step, batches)

    monkeypatch.setattr(trainer.train_step, "update", watched)
    trainer.train()
    assert seen == [0, 0, 0, 3, 3]  # at the start of each step
    assert checkpoint.saved_step(run / STATE) == 5
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step-000002.png",
        "step-000004.png",
        "step-000005.png",
    ]


def test_the_config_of_a_run_holds_all_its_settings(finished_run: pathlib.Path, training_images: pathlib.Path) -> None:
    config = json.loads((finished_run / "config.json").read_text())
    assert config["model"] == TINY.to_dict()
    assert config["tokenizer"] == "pixel"
    assert config["class_names"] == ["0", "1", "2"]
    assert config["data"] == str(training_images)
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


def test_the_log_has_a_finite_loss_and_norm_and_a_rate_for_each_step(finished_run: pathlib.Path) -> None:
    for key in ("loss", "gradient_norm", "images_per_second"):
        values = list(logged(finished_run, key).values())
        assert len(values) == 8
        assert np.isfinite(values).all()
        assert min(values) > 0


def test_the_weights_of_a_run_are_the_average_and_load_as_a_checkpoint(finished_run: pathlib.Path) -> None:
    state, weights = read_safetensors(finished_run / STATE), read_safetensors(finished_run / WEIGHTS)
    assert all(torch.equal(weights[name], state[f"average.{name}"]) for name in weights)
    assert not all(torch.equal(weights[name], state[f"model.{name}"]) for name in weights)
    loaded = checkpoint.load_checkpoint(finished_run)
    assert all(torch.equal(weights[name], value) for name, value in loaded.model.state_dict().items())
    assert (loaded.model.config, loaded.class_names, loaded.tokenizer) == (TINY, ("0", "1", "2"), "pixel")
    assert not loaded.model.training


def test_starting_over_an_existing_run_is_refused_and_changes_nothing(
    half_done_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(MarError, match="--resume") as caught:
        start(run, training_images, 8)
    assert str(run) in one_sentence(caught)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


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


def test_a_batch_larger_than_the_data_is_refused_and_creates_no_folder(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"13.*12") as caught:
        start(run, training_images, 1, batch_size=13).train()
    one_sentence(caught)
    start(run, training_images, 1, batch_size=12)  # the corrected call works
