"""IDX files: images and labels come back as written, and damaged files are refused."""

from __future__ import annotations

import gzip
import hashlib
import pathlib
import struct

import numpy as np
import pytest
from PIL import Image

from runtime.errors import DataError
from tests.helpers.image_files import IMAGES_FILE, LABELS_FILE, noise_images, with_flipped_byte
from tests.helpers.tiny_runs import one_sentence, write_idx, write_idx_dataset
from training.data import idx_dataset
from training.data.datasets import open_dataset
from training.data.idx_dataset import FASHION_MNIST_CLASSES


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_as_they_were_written(tmp_path: pathlib.Path, suffix: str) -> None:
    pixels, labels = noise_images(), np.array([2, 0, 1, 3, 2], np.uint8)
    write_idx(tmp_path / (IMAGES_FILE + suffix), pixels)
    write_idx(tmp_path / (LABELS_FILE + suffix), labels)
    dataset = open_dataset(tmp_path, image_size=6)
    indices = np.array([4, 0, 0, 2])
    actual = dataset.images(indices)
    assert actual.dtype == np.uint8
    assert np.array_equal(actual, pixels[indices][..., None])
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset.channels == 1


@pytest.mark.parametrize(
    ("height", "width", "size", "top", "left"), [(6, 6, 8, 1, 1), (6, 6, 9, 1, 1), (4, 6, 8, 2, 1), (28, 28, 32, 2, 2)]
)
def test_small_images_are_centered_on_black(
    tmp_path: pathlib.Path, height: int, width: int, size: int, top: int, left: int
) -> None:
    pixels = noise_images(2, height, width)
    write_idx(tmp_path / IMAGES_FILE, pixels)
    write_idx(tmp_path / LABELS_FILE, np.array([0, 1], np.uint8))
    actual = open_dataset(tmp_path, size).images(np.arange(2))[..., 0]
    expected = np.zeros((2, size, size), np.uint8)
    expected[:, top : top + height, left : left + width] = pixels
    assert np.array_equal(actual, expected)


def test_the_test_split_is_another_pair_of_files(tmp_path: pathlib.Path) -> None:
    write_idx_dataset(tmp_path, images=4, side=6)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", noise_images(3))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([1, 1, 1], np.uint8))
    assert len(open_dataset(tmp_path, 6, "train").labels) == 4
    assert open_dataset(tmp_path, 6, "test").labels.tolist() == [1, 1, 1]


def test_classes_of_fashion_mnist_have_their_names(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_idx_dataset(tmp_path / "fashion-mnist", images=20, classes=10)
    assert open_dataset(folder, 12).classes == tuple(str(label) for label in range(10))
    labels = open_dataset(folder, 12).labels.astype(np.uint8).tobytes()
    monkeypatch.setattr(idx_dataset, "_FASHION_MNIST_LABELS", (hashlib.sha256(labels).hexdigest(),))
    assert open_dataset(folder, 12).classes == FASHION_MNIST_CLASSES


def test_training_images_are_not_used_as_the_test_split(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    assert len(open_dataset(tmp_path, 8, "train").labels) == 1
    with pytest.raises(DataError, match="no images of the test split"):
        open_dataset(tmp_path, 8, "test")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),  # Kaggle
        ("train-images-idx3-ubyte/train-images-idx3-ubyte", "train-labels-idx1-ubyte/train-labels-idx1-ubyte"),
        ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte.gz"),  # torchvision
        ("raw/train-images-idx3-ubyte.gz", "raw/train-labels-idx1-ubyte.gz"),
        ("gzip/emnist-letters-train-images-idx3-ubyte.gz", "gzip/emnist-letters-train-labels-idx1-ubyte.gz"),
        ("QMNIST-Train-Images-IDX3-ubyte", "QMNIST-Train-Labels-IDX1-ubyte"),
    ],
)
def test_idx_files_are_found_under_their_names_in_the_wild(tmp_path: pathlib.Path, images: str, labels: str) -> None:
    for name, values in ((images, noise_images()), (labels, np.arange(5, dtype=np.uint8))):
        for split, of_split in (("train", values), ("test", values[:2])):
            file = tmp_path / name.replace("train", split).replace("Train", split)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_idx(file, of_split)
    assert open_dataset(tmp_path, 6).labels.tolist() == [0, 1, 2, 3, 4]
    test = open_dataset(tmp_path, 6, "test")
    assert test.labels.tolist() == [0, 1]
    stored = noise_images()[:2]
    expected = stored.transpose(0, 2, 1) if "emnist" in images else stored
    assert np.array_equal(test.images(np.arange(2))[..., 0], expected)
    assert ("turned upright" in " ".join(test.notes)) == ("emnist" in images)


def test_idx_files_of_several_datasets_are_refused(tmp_path: pathlib.Path) -> None:
    for name in ("digits", "letters"):
        write_idx(tmp_path / f"emnist-{name}-train-images-idx3-ubyte", noise_images())
    with pytest.raises(DataError, match=r"several datasets, emnist-digits, emnist-letters") as caught:
        open_dataset(tmp_path, 6)
    assert str(tmp_path) in one_sentence(caught)


def test_the_number_of_images_of_each_class_is_told_and_classes_without_images(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / IMAGES_FILE, noise_images(4))
    write_idx(tmp_path / LABELS_FILE, np.array([1, 1, 2, 200], np.uint8))
    dataset = open_dataset(tmp_path, 6)
    [note] = dataset.notes
    assert note.startswith(f"{tmp_path / IMAGES_FILE}: 4 images of 201 classes: 0 0, 1 2, 2 1, 3 0, ")
    [warning] = dataset.warnings
    assert warning.startswith(f"{tmp_path}: 198 of 201 classes have no images (0, 3, 4, ")
    assert "the largest label is 200" in warning


def _idx_bytes(shape: tuple[int, ...], content: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + content


_FIVE_IMAGES = _idx_bytes((5, 6, 6), bytes(180))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x03\0\0\0\x05",
        b"\0\0\x09\x03" + _FIVE_IMAGES[4:],
        b"\1\0\x08\x03" + _FIVE_IMAGES[4:],
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        _FIVE_IMAGES[:-1],
        _FIVE_IMAGES[:16],
        _FIVE_IMAGES + b"\0",
        _idx_bytes((180,), bytes(180)),
        _idx_bytes((5, 36), bytes(180)),
        _idx_bytes((5, 1, 6, 6), bytes(180)),
        _idx_bytes((5, 6, 6), bytes(4 * 180), kind=0x0D),  # floats
        _idx_bytes((1 << 31, 1 << 31, 4), b""),  # 2^64 bytes, which is 0 to who counts in 64 bits
        _idx_bytes(((1 << 32) - 1, 6, 6), bytes(180)),
    ],
    ids=[
        "empty",
        "torn-magic",
        "torn-header",
        "signed-bytes",
        "bad-magic",
        "a-png",
        "short",
        "no-pixels",
        "long",
        "one-dimension",
        "two-dimensions",
        "four-dimensions",
        "floats",
        "overflow",
        "far-too-many",
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_error_about_a_damaged_idx_file_names_its_path(tmp_path: pathlib.Path, content: bytes, suffix: str) -> None:
    file = tmp_path / (IMAGES_FILE + suffix)
    file.write_bytes(gzip.compress(content) if suffix else content)
    write_idx(tmp_path / LABELS_FILE, np.zeros(5, np.uint8))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(file) in one_sentence(caught)


_PACKED = gzip.compress(_idx_bytes((5, 6, 6), noise_images().tobytes()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip at all",
        _PACKED[:5],
        _PACKED[: len(_PACKED) // 2],
        _PACKED[:-1],
        with_flipped_byte(_PACKED, 10),  # the first byte of the compressed data: what kind of block it is
        with_flipped_byte(_PACKED, len(_PACKED) // 2),
        with_flipped_byte(_PACKED, len(_PACKED) - 5),  # the checksum
        _FIVE_IMAGES,
    ],
    ids=["empty", "text", "torn-header", "half", "short", "bad-block", "bad-pixel", "bad-checksum", "not-packed"],
)
def test_the_error_about_a_damaged_gzip_file_names_its_path(tmp_path: pathlib.Path, content: bytes) -> None:
    file = tmp_path / f"{IMAGES_FILE}.gz"
    file.write_bytes(content)
    write_idx(tmp_path / LABELS_FILE, np.zeros(5, np.uint8))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(file) in one_sentence(caught)


def test_the_error_about_a_damaged_file_of_labels_names_its_path(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / IMAGES_FILE, noise_images())
    (tmp_path / LABELS_FILE).write_bytes(_idx_bytes((5,), bytes(4)))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path / LABELS_FILE) in one_sentence(caught)


def test_as_many_labels_as_images_are_needed(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / IMAGES_FILE, noise_images(5))
    write_idx(tmp_path / LABELS_FILE, np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"5 images but 4 labels") as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)


def test_the_file_of_labels_is_needed(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / IMAGES_FILE, noise_images())
    with pytest.raises(DataError, match=LABELS_FILE) as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)


@pytest.mark.parametrize(("height", "width"), [(9, 6), (6, 9), (9, 9)])
def test_images_larger_than_the_model_are_refused(tmp_path: pathlib.Path, height: int, width: int) -> None:
    write_idx(tmp_path / IMAGES_FILE, noise_images(2, height, width))
    write_idx(tmp_path / LABELS_FILE, np.zeros(2, np.uint8))
    with pytest.raises(DataError, match=f"{height}x{width}.*8x8") as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)


def test_idx_files_without_an_image_are_refused(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / IMAGES_FILE, np.zeros((0, 6, 6), np.uint8))
    write_idx(tmp_path / LABELS_FILE, np.zeros(0, np.uint8))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)
