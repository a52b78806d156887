"""Resuming a run: it gives the uninterrupted run, and damaged or foreign files are refused."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import torch
from PIL import Image

from runtime.errors import CheckpointError, DataError, MarError
from tests.helpers.tiny_runs import (
    logged,
    one_sentence,
    resume,
    start,
    write_idx_dataset,
)
from tests.helpers.training_runs import LOG, STATE, WEIGHTS, assert_same_run, copy_run
from training.checkpoints import checkpoint, run_folder
from training.checkpoints.tensor_files import read_safetensors
from training.loop import training_loop


def test_a_resumed_run_equals_the_uninterrupted_one(
    finished_run: pathlib.Path, half_done_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    assert sorted(logged(run, "loss")) == [1, 2, 3, 4]
    torch.manual_seed(123)  # a new process would have another global state too
    resume(run, steps=8).train()
    assert sorted(logged(run, "loss")) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_same_run(run, finished_run)


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_run_keeps_the_precision_of_the_device_on_which_it_began(
    training_images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(training_loop, "multiplies_bf16", lambda device: bf16)
    start(tmp_path / "run", training_images, 2, precision=None)
    monkeypatch.setattr(training_loop, "multiplies_bf16", lambda device: not bf16)
    assert resume(tmp_path / "run").config.training.precision == precision


def test_bf16_on_a_device_without_instructions_for_it_is_told(
    training_images: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for bf16 in (True, False):
        monkeypatch.setattr(training_loop, "multiplies_bf16", lambda device, bf16=bf16: bf16)
        start(tmp_path / str(bf16), training_images, 2, precision="bf16")
        assert ("emulates them: --precision fp32 is faster here" in capsys.readouterr().err) is not bf16


def test_every_step_of_a_run_draws_other_numbers_and_changes_every_weight(
    finished_run: pathlib.Path, half_done_run: pathlib.Path
) -> None:
    """Or resuming to the same numbers would prove nothing."""
    assert len(set(logged(finished_run, "loss").values())) == 8
    early, late = (read_safetensors(run / STATE) for run in (half_done_run, finished_run))
    assert [name for name in late if torch.equal(early[name], late[name])] == []


def test_a_kill_past_the_last_checkpoint_repeats_the_lost_steps(
    finished_run: pathlib.Path, half_done_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The log of a killed run is longer than its state, and its last line is torn."""
    run = copy_run(half_done_run, tmp_path / "run")
    with (run / LOG).open("a") as log:
        log.write(json.dumps({"step": 5, "loss": 77.0, "gradient_norm": 1.0, "images_per_second": 1.0}) + "\n")
        log.write(json.dumps({"step": 6, "loss": 78.0, "gradient_norm": 1.0, "images_per_second": 1.0}) + "\n")
        log.write('{"step": 7, "lo')
    resume(run, steps=8).train()
    assert_same_run(run, finished_run)


def test_a_kill_before_the_first_checkpoint_starts_again_from_the_same_weights(
    finished_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    start(run, training_images, 8)  # killed before its first step: nothing but its config is there
    assert not (run / STATE).exists()
    torch.manual_seed(123)
    resume(run).train()
    assert_same_run(run, finished_run)


def test_resuming_changes_only_the_given_settings(half_done_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    before = run_folder.read_run_config(run)
    assert resume(run).config.training.steps == 4
    assert run_folder.read_run_config(run) == before
    assert resume(run, steps=6).config.training.steps == 6
    after = run_folder.read_run_config(run)
    assert after == {**before, "training": {**before["training"], "steps": 6}}


def test_resuming_a_finished_run_changes_neither_its_log_nor_its_weights(
    finished_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(finished_run, tmp_path / "run")
    resume(run).train()
    assert (run / LOG).read_text() == (finished_run / LOG).read_text()
    assert_same_run(run, finished_run)


@pytest.mark.parametrize(
    ("file", "share"), [(STATE, 0.0), (STATE, 0.01), (STATE, 0.5), (STATE, 0.99), ("config.json", 0.5)]
)
def test_a_run_with_a_truncated_file_is_refused(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path, file: str, share: float
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as caught:
        resume(run, steps=8)
    assert str(run / file) in one_sentence(caught)


def test_the_error_about_a_truncated_file_says_what_to_do(finished_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = copy_run(finished_run, tmp_path / "run")
    (run / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=f"mar train --resume {run} writes it again") as caught:
        checkpoint.load_checkpoint(run)
    one_sentence(caught)
    resume(run)
    checkpoint.load_checkpoint(run)
    (run / STATE).write_bytes(b"torn")
    with pytest.raises(
        CheckpointError, match=r"delete it to train from the first step on.*model\.safetensors"
    ) as caught:
        resume(run)
    one_sentence(caught)
    checkpoint.load_checkpoint(run)
    (run / STATE).unlink()
    resume(run).train()
    assert_same_run(run, finished_run)


def test_a_state_that_names_no_step_is_refused(finished_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = pathlib.Path(shutil.copytree(finished_run, tmp_path / "run"))
    checkpoint.save_weights(run / STATE, read_safetensors(run / STATE))
    with pytest.raises(CheckpointError, match="names no step") as caught:
        resume(run, steps=8)
    assert str(run / STATE) in one_sentence(caught)


def test_the_state_of_another_model_is_refused(
    half_done_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["model"]["decoder_embed_dim"] = 32
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        resume(run, steps=8)
    assert str(run / STATE) in one_sentence(caught)


@pytest.mark.parametrize("name", ["model.z_proj.bias", "average.z_proj.bias", "exp_avg.z_proj.bias"])
def test_a_state_with_a_tensor_of_another_shape_is_refused(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    """One that could be broadcast, too."""
    run = copy_run(half_done_run, tmp_path / "run")
    state = read_safetensors(run / STATE)
    checkpoint.save_weights(run / STATE, state | {name: torch.zeros(1)}, {"step": "4"})
    with pytest.raises(CheckpointError) as caught:
        resume(run, steps=8)
    assert str(run / STATE) in one_sentence(caught)


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
def test_a_run_with_an_invalid_config_is_refused(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path, key: str, value: object
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError) as caught:
        resume(run)
    assert str(run / "config.json") in one_sentence(caught)


def test_resuming_a_folder_without_a_run_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        resume(tmp_path / "nowhere")
    one_sentence(caught)


def test_resuming_without_the_data_is_refused(half_done_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match=r"gone: .*; give their new place \(--data\) if they were moved") as caught:
        resume(run, steps=8)
    one_sentence(caught)


def test_resuming_on_data_with_more_classes_than_the_model_is_refused(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    other = write_idx_dataset(tmp_path / "other", classes=6)
    (run / "config.json").write_text(json.dumps({**config, "data": str(other)}))
    with pytest.raises(MarError, match="classes") as caught:
        resume(run, steps=8).train()
    one_sentence(caught)


def test_resuming_on_renamed_classes_is_refused_with_both_lists(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    for number in range(12):
        file = data / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (20 * number, 0, 0)).save(file)
    run = tmp_path / "run"
    start(run, data, 1).train()
    before = (run / "config.json").read_bytes()
    (data / "a").rename(data / "z")
    with pytest.raises(
        DataError, match=r"data has the classes b, c, z, but .*run has a, b, c, so .*; restore"
    ) as caught:
        resume(run, steps=2)
    one_sentence(caught)
    assert (run / "config.json").read_bytes() == before
    (data / "z").rename(data / "a")
    resume(run, steps=2).train()


def test_a_finished_run_whose_log_is_lost_can_still_be_resumed(
    finished_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(finished_run, tmp_path / "run")
    (run / LOG).unlink()
    resume(run).train()
    resume(run, steps=9).train()
    assert sorted(logged(run, "loss")) == [9]


def test_a_run_with_an_old_key_in_its_config_is_refused_with_the_new_one(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["training"]["attention"] = config["training"].pop("attention_precision")
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the key attention is now attention_precision") as caught:
        resume(run)
    assert str(run / "config.json") in one_sentence(caught)
