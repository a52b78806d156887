"""Images without class folders: one class, which trains an unconditional model."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ConfigError, DataError
from tests.helpers.image_files import IMAGES_FILE, LABELS_FILE, noise_images, save_image
from tests.helpers.tiny_runs import TINY, one_sentence, start, tiny_training, write_idx
from training.checkpoints import checkpoint, run_folder
from training.config import RunConfig
from training.data.datasets import open_dataset
from training.loop.mar_trainer import MarTrainer


def _images(folder: pathlib.Path, count: int = 4) -> pathlib.Path:
    for number in range(count):
        save_image(folder / f"{number}.png", Image.new("RGB", (12, 12), (40 * number, 9, 9)))
    return folder


def test_images_without_class_folders_are_one_class_and_the_rest_is_told(tmp_path: pathlib.Path) -> None:
    _images(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    dataset = open_dataset(tmp_path, 12)
    assert (dataset.classes, dataset.labels.tolist()) == (("image",), [0, 0, 0, 0])
    assert dataset.images(np.arange(4))[:, 0, 0, 0].tolist() == [0, 40, 80, 120]
    assert dataset.notes == (
        f"{tmp_path}: 4 images without class sub-folders, so all of them are one class, image",
        f"{tmp_path}: left out 1 hidden or system file: .hidden",
        f"{tmp_path}: left out 1 file of other types: .txt 1",
    )


def test_both_splits_may_be_flat(tmp_path: pathlib.Path) -> None:
    _images(tmp_path / "train")
    _images(tmp_path / "test", 2)
    assert [len(open_dataset(tmp_path, 12, split).labels) for split in ("train", "test")] == [4, 2]
    assert open_dataset(tmp_path, 12, "test").classes == ("image",)


def test_a_flat_folder_trains_a_model_of_one_class_with_eight_samples(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    start(run, _images(tmp_path / "data"), 1).train()
    loaded = checkpoint.load_checkpoint(run)
    assert (loaded.class_names, loaded.model.config.class_num) == (("image",), 1)
    with Image.open(run / "samples" / "step-000001.png") as image:
        assert image.size == (4 * (96 + 4) + 4, 2 * (96 + 14 + 4) + 4)


def test_a_folder_without_any_image_says_what_is_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(
        DataError, match=r"neither IDX files nor images here; .*left out 1 file of other types"
    ) as caught:
        open_dataset(tmp_path, 12)
    one_sentence(caught)


def test_a_stray_label_is_refused_unless_classes_may_be_empty(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_idx(data / IMAGES_FILE, noise_images(4, 12, 12))
    write_idx(data / LABELS_FILE, np.array([0, 1, 2, 200], np.uint8))
    with pytest.raises(DataError, match=r"197 of 201 classes have no images .* --empty-classes") as caught:
        start(tmp_path / "run", data, 1)
    one_sentence(caught)
    assert not (tmp_path / "run").exists()
    trainer = start(tmp_path / "run", data, 1, empty_classes=True)
    assert trainer.config.model.class_num == 201


def test_an_epoch_is_as_many_steps_as_there_are_full_batches(tmp_path: pathlib.Path) -> None:
    data = _images(tmp_path / "data", 11)
    config = RunConfig(str(data), TINY, tiny_training(1, batch_size=4, warmup_steps=None))
    trainer = MarTrainer.start(tmp_path / "run", config, epochs=15)
    assert (trainer.config.training.steps, trainer.config.training.warmup_steps) == (30, 3)
    assert MarTrainer.resume(tmp_path / "run", epochs=20).config.training.steps == 40
    assert run_folder.read_run_config(tmp_path / "run")["training"]["steps"] == 40
    with pytest.raises(ConfigError, match="a batch of 12 does not fit a dataset of 11 images"):
        MarTrainer.resume(tmp_path / "run", changes={"batch_size": 12}, epochs=2)
