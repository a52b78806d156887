"""Any dataset: what is none is refused, warnings, and fingerprints."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from runtime.errors import DataError
from tests.helpers.image_files import IMAGES_FILE, LABELS_FILE, noise_images, save_image
from tests.helpers.tiny_runs import one_sentence, write_idx, write_idx_dataset
from training.data.datasets import open_dataset, to_rgb


def _nothing(path: pathlib.Path) -> None:
    path.mkdir()


def _empty_classes(path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        (path / name / "notes.txt").write_text("soon")


def _a_file(path: pathlib.Path) -> None:
    path.write_text("data")


def _missing(path: pathlib.Path) -> None:
    assert not path.exists()


def _labels_alone(path: pathlib.Path) -> None:
    path.mkdir()
    write_idx(path / LABELS_FILE, np.zeros(5, np.uint8))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (_nothing, "data"),
        (_empty_classes, "data/a"),
        (_a_file, "data"),
        (_missing, "data"),
        (_labels_alone, "data"),
    ],
)
def test_the_error_about_a_missing_dataset_names_the_path(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path], None], named: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "data", 8)
    assert str(tmp_path / named) in one_sentence(caught)


def test_a_class_without_images_is_reported_by_its_path_and_keeps_its_number(tmp_path: pathlib.Path) -> None:
    for name in ("a", "c"):
        save_image(tmp_path / name / "0.png", Image.new("RGB", (8, 8)))
    (tmp_path / "b").mkdir()
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.labels.tolist() == [0, 2]
    [complaint] = dataset.warnings
    assert complaint.startswith(f"{tmp_path / 'b'}: ")


@pytest.mark.parametrize(("size", "small"), [((8, 8), False), ((8, 7), True), ((30, 5), True), ((9, 30), False)])
def test_an_image_smaller_than_the_model_is_reported_by_its_path_when_it_is_read(
    tmp_path: pathlib.Path, size: tuple[int, int], small: bool
) -> None:
    file = save_image(tmp_path / "class" / "0.png", Image.new("RGB", size))
    dataset = open_dataset(tmp_path, 8)
    assert dataset.warnings == []
    dataset.images(np.array([0]))
    assert [str(file) in complaint for complaint in dataset.warnings] == [True] * small


@pytest.mark.parametrize("changed", ["image", "label", "size", "split"])
def test_the_fingerprint_of_idx_files_depends_on_every_image_and_label(tmp_path: pathlib.Path, changed: str) -> None:
    pixels, labels = noise_images(200), (np.arange(200) % 4).astype(np.uint8)

    def fingerprint(size: int = 6) -> str:
        write_idx(tmp_path / IMAGES_FILE, pixels)
        write_idx(tmp_path / LABELS_FILE, labels)
        return open_dataset(tmp_path, size).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    if changed == "image":
        pixels[-1, -1, -1] ^= 1
    elif changed == "label":
        labels[-1] = 0
    elif changed == "split":
        pixels, labels = pixels[:-1], labels[:-1]
    assert fingerprint(8 if changed == "size" else 6) != before


def _repainted(file: pathlib.Path) -> None:
    """As many bytes as before, a second later."""
    changed = file.stat().st_mtime_ns + 10**9
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    os.utime(file, ns=(changed, changed))


_CHANGES: dict[str, Callable[[pathlib.Path], object]] = {
    "repainted": _repainted,
    "another size": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "renamed": lambda file: file.rename(file.with_name("z.png")),
    "another class": lambda file: file.rename(file.parent.parent / "a" / file.name),
    "gone": lambda file: file.unlink(),
    "a new class": lambda file: (file.parent.parent / "c").mkdir(),
    "a link to nowhere": lambda file: file.with_name("z.png").symlink_to("nowhere"),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_the_fingerprint_of_a_folder_depends_on_every_file(tmp_path: pathlib.Path, change: str) -> None:
    for number in range(150):
        file = tmp_path / "ab"[number // 100] / f"{number:03}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"image {number}, never decoded")
    before = open_dataset(tmp_path, 8).fingerprint
    assert open_dataset(tmp_path, 8).fingerprint == before
    assert open_dataset(tmp_path, 9).fingerprint != before
    _CHANGES[change](file)
    assert open_dataset(tmp_path, 8).fingerprint != before


def test_gray_images_in_rgb_have_another_fingerprint(tmp_path: pathlib.Path) -> None:
    dataset = open_dataset(write_idx_dataset(tmp_path), 12)
    assert to_rgb(dataset).fingerprint != dataset.fingerprint
