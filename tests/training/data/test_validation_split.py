"""Images held out of training: always the same ones, and none of them in a batch."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from runtime.errors import DataError
from tests.helpers.tiny_runs import logged, one_sentence, resume, start, write_idx_dataset
from tests.helpers.training_runs import STATE, assert_same_run, copy_run, examples_by_step
from training.data.datasets import open_dataset
from training.data.latent_dataset import PixelLatents
from training.data.validation_split import ImageSubset, TrainingPart, open_train_and_test, split

_SHARE = 0.3


def _write_folder(folder: pathlib.Path, images: int = 60) -> pathlib.Path:
    """Images of 12x12 pixels in the classes a and b, whose red is their number."""
    for number in range(images):
        file = folder / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (number, 0, 0)).save(file)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Sixty images of two classes. Read only."""
    return _write_folder(tmp_path_factory.mktemp("data") / "images")


def _held_out(folder: pathlib.Path, share: float = _SHARE) -> set[str]:
    dataset = open_dataset(folder, 12)
    trained, held_out = split(dataset, share)
    assert sorted([*trained.tolist(), *held_out.tolist()]) == list(range(len(dataset.labels)))
    return {dataset.name(index).removeprefix(f"{folder}/") for index in held_out}


def test_about_the_share_is_held_out_and_the_same_images_of_a_copy_elsewhere(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    held_out = _held_out(folder)
    assert 10 <= len(held_out) <= 26  # of 60, and binomial
    shutil.copytree(folder, tmp_path / "copy")
    assert _held_out(tmp_path / "copy") == held_out
    assert _held_out(folder, 0.15) < held_out < _held_out(folder, 0.6)


def test_new_images_move_no_other_image_into_or_out_of_training(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    old = _held_out(folder)
    new = _held_out(_write_folder(tmp_path / "more", 90))
    assert {name for name in new if int(pathlib.Path(name).stem) < 60} == old
    assert len(new) > len(old)


def test_at_least_one_image_is_held_out_and_one_of_each_class_is_trained_on(folder: pathlib.Path) -> None:
    assert len(_held_out(folder, 1e-9)) == 1
    dataset = open_dataset(folder, 12)
    trained, _ = split(dataset, 0.999)
    assert dataset.labels[trained].tolist() == [0, 1]


def test_one_image_of_each_class_is_too_little_to_hold_any_out(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="no image can be held out of 2 images, one of each class") as caught:
        _held_out(_write_folder(tmp_path, 2))
    one_sentence(caught)


def test_a_subset_has_the_images_labels_and_names_of_the_whole(folder: pathlib.Path) -> None:
    dataset = open_dataset(folder, 12)
    trained, held_out = split(dataset, _SHARE)
    subset = ImageSubset(dataset, held_out)
    for index, whole in enumerate(held_out.tolist()):
        assert (subset.images(np.array([index])) == dataset.images(np.array([whole]))).all()
        assert (subset.labels[index], subset.name(index)) == (dataset.labels[whole], dataset.name(whole))
    assert subset.fingerprint != ImageSubset(dataset, trained).fingerprint != dataset.fingerprint


def test_images_to_compare_with_are_the_test_split_or_those_held_out(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trained, test = open_train_and_test(folder, 12, (0, 0, 0), _SHARE)
    assert test is not None
    assert {test.name(index).removeprefix(f"{folder}/") for index in range(len(test.labels))} == _held_out(folder)
    assert len(trained.labels) + len(test.labels) == 60
    _write_folder(tmp_path / "train", 20)
    _write_folder(tmp_path / "test", 6)
    trained, test = open_train_and_test(tmp_path, 12, (0, 0, 0), _SHARE)
    assert test is not None
    assert (len(trained.labels) < 20, len(test.labels)) == (True, 6)
    with pytest.raises(DataError, match="give --split train, or the --validation-share of the run") as caught:
        open_train_and_test(folder, 12, (0, 0, 0), 0)
    one_sentence(caught)


def test_a_run_trains_on_no_held_out_image_logs_their_loss_and_resumes_with_the_same(tmp_path: pathlib.Path) -> None:
    data = write_idx_dataset(tmp_path / "data", images=24)
    settings = {"validation_share": _SHARE, "batch_size": 4}
    whole = start(tmp_path / "whole", data, 20, **settings)
    assert isinstance(whole.dataset, TrainingPart)
    names = [whole.dataset.name(index) for step in examples_by_step(whole) for index in step]
    held_out = {whole.dataset.held_out.name(index) for index in range(len(whole.dataset.held_out.labels))}
    assert held_out
    assert not held_out & set(names)
    whole.train()
    losses = logged(tmp_path / "whole", "validation_loss")
    assert list(losses) == [10, 20]
    assert losses[10] != losses[20]
    start(tmp_path / "halves", data, 10, **settings, warmup_steps=2).train()
    resume(copy_run(tmp_path / "halves", tmp_path / "again"), steps=20).train()
    assert_same_run(tmp_path / "again", tmp_path / "whole")
    assert logged(tmp_path / "again", "validation_loss") == losses
    assert (tmp_path / "again" / STATE).exists()
    record = json.loads((tmp_path / "whole" / "config.json").read_text())["dataset"]
    assert sum(record["images"].values()) == len(whole.dataset.labels)


def test_the_training_part_of_latents_is_that_of_the_images(folder: pathlib.Path) -> None:
    part = TrainingPart(PixelLatents(open_dataset(folder, 12)), _SHARE)
    names = {part.held_out.name(index).removeprefix(f"{folder}/") for index in range(len(part.held_out.labels))}
    assert names == _held_out(folder)
    assert part.notes[-1] == f"{len(names)} images held out of 60"
