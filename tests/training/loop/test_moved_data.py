"""Resuming a run whose data are in another place, or are not what they were."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from runtime.errors import CheckpointError, DataError
from tests.helpers.command_line import Command
from tests.helpers.image_files import LABELS_FILE
from tests.helpers.tiny_runs import one_sentence, one_thread, write_idx, write_idx_dataset
from tests.helpers.train_command import error_line
from tests.helpers.training_runs import assert_same_run, copy_run
from training.checkpoints import checkpoint, run_folder
from training.data.data_record import DataRecord
from training.loop.mar_trainer import MarTrainer


def test_a_run_resumed_with_its_data_elsewhere_is_the_same_run(
    half_done_run: pathlib.Path, finished_run: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, moved = copy_run(half_done_run, tmp_path / "run"), write_idx_dataset(tmp_path / "moved")
    MarTrainer.resume(run, changes={"steps": 8}, data=moved).train()
    assert_same_run(run, finished_run)
    assert run_folder.read_run_config(run)["data"] == str(moved)
    assert "changed since" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (15, None, "15 images instead of 12 (0 5 instead of 4, 1 5 instead of 4, 2 5 instead of 4)"),
        (12, [0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1], "12 images instead of 12 (0 5 instead of 4, 2 3 instead of 4)"),
        (12, [1, 0, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2], "as many images of each class, but not the same files"),
    ],
)
def test_other_changes_of_the_data_are_told_once(
    half_done_run: pathlib.Path,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
    images: int,
    labels: list[int] | None,
    told: str,
) -> None:
    run, data = copy_run(half_done_run, tmp_path / "run"), write_idx_dataset(tmp_path / "data", images)
    if labels is not None:
        write_idx(data / LABELS_FILE, np.array(labels, np.uint8))
    line = f"{data}: changed since the run began: {told}\n"
    MarTrainer.resume(run, data=data)
    assert line in capfd.readouterr().err
    MarTrainer.resume(run)
    assert line not in capfd.readouterr().err


def test_other_class_names_are_refused_with_both_lists_and_change_nothing(
    train: Command, tmp_path: pathlib.Path
) -> None:
    for folder, names in (("old", "ab"), ("new", "ac")):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), "red").save(tmp_path / folder / name / "0.png")
    options = ("--model", "pixel_small", "--image-size", 8, "--batch-size", 2, "--steps", 1, "--threads", 1)
    run = tmp_path / "run"
    with one_thread():
        assert train(*options, "--data", tmp_path / "old", "--out", run)[0] == 0
        before = (run / "config.json").read_bytes()
        code, _, err = train("--resume", run, "--steps", 2, "--data", tmp_path / "new")
    assert code == 1
    assert f"{tmp_path / 'new'} has the classes a, c, but {run} has a, b, so" in error_line(err)
    assert (run / "config.json").read_bytes() == before


def test_a_damaged_record_is_one_line(half_done_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    checkpoint.write_run_config(run, {**run_folder.read_run_config(run), "dataset": {"images": {"0": "many"}}})
    with pytest.raises(CheckpointError, match=r"config\.json: dataset") as caught:
        MarTrainer.resume(run)
    one_sentence(caught)


def test_a_run_without_a_record_gets_one(half_done_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = copy_run(half_done_run, tmp_path / "run")
    config = run_folder.read_run_config(run)
    record = config.pop("dataset")
    checkpoint.write_run_config(run, config)
    MarTrainer.resume(run)
    assert run_folder.read_run_config(run)["dataset"] == record


def test_a_class_that_is_gone_counts_zero() -> None:
    before, now = DataRecord({"a": 2, "b": 1}, "x"), DataRecord({"a": 2}, "y")
    assert now.changes_since(before) == "2 images instead of 3 (b 0 instead of 1)"
    assert now.changes_since(now) == ""


def test_data_that_is_gone_is_one_line_that_names_the_place(
    half_done_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(DataError, match="nowhere") as caught:
        MarTrainer.resume(copy_run(half_done_run, tmp_path / "run"), data=tmp_path / "nowhere")
    one_sentence(caught)
