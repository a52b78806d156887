"""Datasets: the images that were written come back, and a damaged one is refused by its path."""

from __future__ import annotations

import gzip
import hashlib
import os
import pathlib
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import DataError
from tests.helpers.tiny_runs import one_sentence, write_idx, write_idx_dataset
from training.data import datasets as data
from training.data.datasets import FASHION_MNIST_CLASSES, open_dataset, to_rgb

_IMAGES, _LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def _pixels(images: int = 5, height: int = 6, width: int = 6) -> NDArray[np.uint8]:
    """Noise without a zero, so that padding can be told from it."""
    return np.random.default_rng(1).integers(1, 256, (images, height, width), dtype=np.uint8)


# IDX


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_give_back_what_was_written(tmp_path: pathlib.Path, suffix: str) -> None:
    pixels, labels = _pixels(), np.array([2, 0, 1, 3, 2], np.uint8)
    write_idx(tmp_path / (_IMAGES + suffix), pixels)
    write_idx(tmp_path / (_LABELS + suffix), labels)
    dataset = open_dataset(tmp_path, image_size=6)
    indices = np.array([4, 0, 0, 2])
    found = dataset.images(indices)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels[indices][..., None])
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset.channels == 1


@pytest.mark.parametrize(
    ("height", "width", "size", "top", "left"), [(6, 6, 8, 1, 1), (6, 6, 9, 1, 1), (4, 6, 8, 2, 1), (28, 28, 32, 2, 2)]
)
def test_small_images_are_centred_on_black(
    tmp_path: pathlib.Path, height: int, width: int, size: int, top: int, left: int
) -> None:
    pixels = _pixels(2, height, width)
    write_idx(tmp_path / _IMAGES, pixels)
    write_idx(tmp_path / _LABELS, np.array([0, 1], np.uint8))
    found = open_dataset(tmp_path, size).images(np.arange(2))[..., 0]
    expected = np.zeros((2, size, size), np.uint8)
    expected[:, top : top + height, left : left + width] = pixels
    assert np.array_equal(found, expected)


def test_the_test_split_is_another_pair_of_files(tmp_path: pathlib.Path) -> None:
    write_idx_dataset(tmp_path, images=4, side=6)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", _pixels(3))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([1, 1, 1], np.uint8))
    assert len(open_dataset(tmp_path, 6, "train").labels) == 4
    assert open_dataset(tmp_path, 6, "test").labels.tolist() == [1, 1, 1]


def test_classes_have_their_names_where_the_labels_are_those_of_fashion_mnist(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_idx_dataset(tmp_path / "fashion-mnist", images=20, classes=10)
    assert open_dataset(folder, 12).classes == tuple(str(label) for label in range(10))
    labels = open_dataset(folder, 12).labels.astype(np.uint8).tobytes()
    monkeypatch.setattr(data, "_FASHION_MNIST_LABELS", (hashlib.sha256(labels).hexdigest(),))
    assert open_dataset(folder, 12).classes == FASHION_MNIST_CLASSES


def test_a_photo_is_turned_the_way_its_camera_says(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    image = Image.new("RGB", (8, 8))
    image.paste("white", (0, 0, 8, 4))  # bright above
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    image.save(tmp_path / "a" / "0.png", exif=exif)
    shown = open_dataset(tmp_path, 8).images(np.array([0]))[0, :, :, 0]
    assert (shown[:, 4:] == 255).all()
    assert (shown[:, :4] == 0).all()


def test_images_without_a_test_split_are_not_taken_for_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    assert len(open_dataset(tmp_path, 8, "train").labels) == 1
    with pytest.raises(DataError, match="no images of the test split"):
        open_dataset(tmp_path, 8, "test")


def _idx_bytes(shape: tuple[int, ...], content: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + content


_FIVE_IMAGES = _idx_bytes((5, 6, 6), bytes(180))


def _with_a_flipped_byte(packed: bytes, at: int) -> bytes:
    return packed[:at] + bytes((packed[at] ^ 0xFF,)) + packed[at + 1 :]


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
def test_a_damaged_idx_file_is_refused_by_its_path(tmp_path: pathlib.Path, content: bytes, suffix: str) -> None:
    file = tmp_path / (_IMAGES + suffix)
    file.write_bytes(gzip.compress(content) if suffix else content)
    write_idx(tmp_path / _LABELS, np.zeros(5, np.uint8))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(file) in one_sentence(caught)


_PACKED = gzip.compress(_idx_bytes((5, 6, 6), _pixels().tobytes()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip at all",
        _PACKED[:5],
        _PACKED[: len(_PACKED) // 2],
        _PACKED[:-1],
        _with_a_flipped_byte(_PACKED, 10),  # the first byte of the compressed data: what kind of block it is
        _with_a_flipped_byte(_PACKED, len(_PACKED) // 2),
        _with_a_flipped_byte(_PACKED, len(_PACKED) - 5),  # the checksum
        _FIVE_IMAGES,
    ],
    ids=["empty", "text", "torn-header", "half", "short", "bad-block", "bad-pixel", "bad-checksum", "not-packed"],
)
def test_a_damaged_gzip_is_refused_by_its_path(tmp_path: pathlib.Path, content: bytes) -> None:
    file = tmp_path / f"{_IMAGES}.gz"
    file.write_bytes(content)
    write_idx(tmp_path / _LABELS, np.zeros(5, np.uint8))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(file) in one_sentence(caught)


def test_a_damaged_file_of_labels_is_refused_by_its_path(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / _IMAGES, _pixels())
    (tmp_path / _LABELS).write_bytes(_idx_bytes((5,), bytes(4)))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path / _LABELS) in one_sentence(caught)


def test_as_many_labels_as_images_are_needed(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / _IMAGES, _pixels(5))
    write_idx(tmp_path / _LABELS, np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"5 images but 4 labels") as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)


def test_the_file_of_labels_is_needed(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / _IMAGES, _pixels())
    with pytest.raises(DataError, match=_LABELS) as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)


@pytest.mark.parametrize(("height", "width"), [(9, 6), (6, 9), (9, 9)])
def test_images_larger_than_the_model_are_refused(tmp_path: pathlib.Path, height: int, width: int) -> None:
    write_idx(tmp_path / _IMAGES, _pixels(2, height, width))
    write_idx(tmp_path / _LABELS, np.zeros(2, np.uint8))
    with pytest.raises(DataError, match=f"{height}x{width}.*8x8") as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)


def test_idx_files_without_a_image_are_refused(tmp_path: pathlib.Path) -> None:
    write_idx(tmp_path / _IMAGES, np.zeros((0, 6, 6), np.uint8))
    write_idx(tmp_path / _LABELS, np.zeros(0, np.uint8))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, 8)
    assert str(tmp_path) in one_sentence(caught)


# Folders


def _save(file: pathlib.Path, image: Image.Image) -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def _all_images(path: pathlib.Path, size: int) -> NDArray[np.uint8]:
    dataset = open_dataset(path, size)
    return dataset.images(np.arange(len(dataset.labels)))


def test_sub_folders_are_classes_in_alphabetical_order(tmp_path: pathlib.Path) -> None:
    for number, (name, files) in enumerate([("zebra", 1), ("ant", 3), ("Mouse", 2)]):
        for index in range(files):
            _save(tmp_path / name / f"{index}.png", Image.new("RGB", (8, 8), (10 * number, index, 0)))
    _save(tmp_path / ".hidden" / "0.png", Image.new("RGB", (8, 8)))
    for name in ("._0.png", ".ipynb_checkpoints/0-checkpoint.png"):
        _save(tmp_path / "ant" / name, Image.new("RGB", (8, 8)))
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == ("Mouse", "ant", "zebra")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert dataset.labels.dtype == np.int64
    assert dataset.channels == 3
    corners = dataset.images(np.array([5, 0, 4]))[:, 0, 0].tolist()
    assert corners == [[0, 0, 0], [20, 0, 0], [10, 2, 0]]  # zebra, the first mouse, the last ant


def test_classes_and_their_images_do_not_depend_on_the_order_of_the_folder(tmp_path: pathlib.Path) -> None:
    """A file system lists names as it likes; with twenty of them, not in alphabetical order."""
    shuffled = np.random.default_rng(2).permutation(20).tolist()
    for number in shuffled:
        _save(tmp_path / f"class-{number:02}" / "0.png", Image.new("RGB", (8, 8)))
        _save(tmp_path / "class-00" / f"{number:02}.png", Image.new("RGB", (8, 8), (number, 0, 0)))
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == tuple(f"class-{number:02}" for number in range(20))
    of_the_first = dataset.images(np.flatnonzero(dataset.labels == 0))[:, 0, 0, 0].tolist()
    assert of_the_first == [0, *range(20)]  # 0.png, and then those with two digits


def test_images_of_a_class_may_lie_deeper_and_have_any_usual_suffix(tmp_path: pathlib.Path) -> None:
    for name in ("a.png", "b.JPG", "deeper/c.jpeg", "deeper/still/d.bmp", "e.webp"):
        _save(tmp_path / "class" / name, Image.new("RGB", (8, 8), "gray"))
    assert _all_images(tmp_path, 8).shape == (5, 8, 8, 3)


@pytest.mark.parametrize(("split", "classes"), [("train", ("a",)), ("test", ("b",))])
def test_a_split_is_a_folder_above_the_classes(tmp_path: pathlib.Path, split: str, classes: tuple[str, ...]) -> None:
    _save(tmp_path / "train" / "a" / "0.png", Image.new("RGB", (8, 8)))
    _save(tmp_path / "test" / "b" / "0.png", Image.new("RGB", (8, 8)))
    assert open_dataset(tmp_path, 8, split).classes == classes


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_square_of_an_oblong_image_is_kept(tmp_path: pathlib.Path, turned: bool) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = (255, 0, 0), np.arange(100).reshape(10, 10, 1), (0, 0, 255)
    image = wide.transpose(1, 0, 2) if turned else wide
    _save(tmp_path / "class" / "0.png", Image.fromarray(np.ascontiguousarray(image)))
    expected = wide[:, 10:20].transpose(1, 0, 2) if turned else wide[:, 10:20]
    assert np.array_equal(_all_images(tmp_path, 10)[0], expected)  # no resizing, so to the last bit


@pytest.mark.parametrize("size", [(7, 7), (64, 64), (100, 31), (31, 100), (33, 32), (1, 1), (3, 200)])
def test_images_of_any_size_come_out_in_the_size_of_the_model(tmp_path: pathlib.Path, size: tuple[int, int]) -> None:
    _save(tmp_path / "class" / "0.png", Image.new("RGB", size, (10, 120, 230)))
    found = _all_images(tmp_path, 16)
    assert found.shape == (1, 16, 16, 3)
    assert found.dtype == np.uint8
    assert (found == (10, 120, 230)).all()


def _sixteen_bits() -> Image.Image:
    return Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (8, 8), (100, 50, 25)), (100, 50, 25)),
        (Image.new("L", (8, 8), 100), (100, 100, 100)),
        (Image.new("RGBA", (8, 8), (100, 50, 25, 255)), (100, 50, 25)),
        (Image.new("LA", (8, 8), (100, 255)), (100, 100, 100)),
        (Image.new("RGB", (8, 8), (100, 50, 25)).convert("P", palette=Image.Palette.ADAPTIVE), (100, 50, 25)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (_sixteen_bits(), (100, 100, 100)),
    ],
    ids=["rgb", "gray", "rgba", "gray-alpha", "palette", "one-bit", "gray-16-bit"],
)
def test_every_kind_of_png_comes_out_as_the_rgb_it_shows(
    tmp_path: pathlib.Path, image: Image.Image, expected: tuple[int, int, int]
) -> None:
    _save(tmp_path / "class" / "0.png", image)
    found = _all_images(tmp_path, 8)
    assert found.shape == (1, 8, 8, 3)
    assert (found == expected).all(), found[0, 0, 0]


def _png() -> bytes:
    pixels = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _bomb() -> bytes:
    """A valid header that promises 3.6 gigapixels."""
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)) + _png()[33:]


def _torn_chunk() -> bytes:
    """A whole first chunk, and then one whose name is no name."""
    return _png()[:33] + b"\0\0\0\x04\x01\x02\x03\x04" + _png()[41:]


def _with_chunk(name: bytes, content: bytes, at: int) -> bytes:
    return _png()[:at] + _chunk(name, content) + _png()[at:]


# Pillow meets these with a SyntaxError or a ValueError of its parsers, not with an error of its own.
_BAD_EXIF = _with_chunk(b"eXIf", b"no exif at all", 33)
_BAD_COLOURS = _with_chunk(b"cHRM", b"1", 33)
_BAD_TEXT_AFTER_THE_PIXELS = _with_chunk(b"zTXt", b"key\0\x07packed in a way that is not known", len(_png()) - 12)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"text", _png()[:10], _png()[:33], _png()[: len(_png()) // 2], _bomb(), _torn_chunk(), b"GIF89a\x01"),
        *(_BAD_EXIF, _BAD_COLOURS, _BAD_TEXT_AFTER_THE_PIXELS),
    ],
    ids=[
        *("empty", "text", "torn-header", "header-alone", "half", "bomb", "torn-chunk", "torn-gif"),
        *("bad-exif", "bad-colours", "bad-text"),
    ],
)
def test_a_damaged_image_is_refused_by_its_path(tmp_path: pathlib.Path, content: bytes) -> None:
    good = _save(tmp_path / "class" / "0.png", Image.new("RGB", (8, 8)))
    good.with_name("1.png").write_bytes(content)
    dataset = open_dataset(tmp_path, 8)
    dataset.images(np.array([0]))
    with pytest.raises(DataError) as caught:
        dataset.images(np.array([0, 1]))
    assert str(good.with_name("1.png")) in one_sentence(caught)


def test_the_image_that_the_damaged_ones_are_made_from_is_whole(tmp_path: pathlib.Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "0.png").write_bytes(_png())
    assert np.ptp(_all_images(tmp_path, 32)) > 200


def test_a_image_with_a_flipped_byte_is_read_or_refused_but_never_crashes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "class").mkdir()
    file, whole, refused = tmp_path / "class" / "0.png", _png(), 0
    file.write_bytes(whole)
    dataset = open_dataset(tmp_path, 32)
    for at in range(0, len(whole), 13):
        file.write_bytes(_with_a_flipped_byte(whole, at))
        try:
            assert dataset.images(np.array([0])).shape == (1, 32, 32, 3)
        except DataError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 0


def _nothing(path: pathlib.Path) -> None:
    path.mkdir()


def _empty_classes(path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        (path / name / "notes.txt").write_text("soon")


def _images_without_classes(path: pathlib.Path) -> None:
    _save(path / "0.png", Image.new("RGB", (8, 8)))


def _a_file(path: pathlib.Path) -> None:
    path.write_text("data")


def _missing(path: pathlib.Path) -> None:
    assert not path.exists()


def _labels_alone(path: pathlib.Path) -> None:
    path.mkdir()
    write_idx(path / _LABELS, np.zeros(5, np.uint8))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (_nothing, "data"),
        (_empty_classes, "data/a"),
        (_images_without_classes, "data"),
        (_a_file, "data"),
        (_missing, "data"),
        (_labels_alone, "data"),
    ],
)
def test_what_is_no_dataset_is_refused_by_its_path(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path], None], named: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "data", 8)
    assert str(tmp_path / named) in one_sentence(caught)


# What can be lived with


def test_a_class_without_images_is_told_by_its_path_and_keeps_its_number(tmp_path: pathlib.Path) -> None:
    for name in ("a", "c"):
        _save(tmp_path / name / "0.png", Image.new("RGB", (8, 8)))
    (tmp_path / "b").mkdir()
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.labels.tolist() == [0, 2]
    [complaint] = dataset.warnings
    assert complaint.startswith(f"{tmp_path / 'b'}: ")


@pytest.mark.parametrize(("size", "small"), [((8, 8), False), ((8, 7), True), ((30, 5), True), ((9, 30), False)])
def test_a_image_below_the_target_is_told_by_its_path_when_it_is_read(
    tmp_path: pathlib.Path, size: tuple[int, int], small: bool
) -> None:
    file = _save(tmp_path / "class" / "0.png", Image.new("RGB", size))
    dataset = open_dataset(tmp_path, 8)
    assert dataset.warnings == []
    dataset.images(np.array([0]))
    assert [str(file) in complaint for complaint in dataset.warnings] == [True] * small


# What tells one dataset from another


@pytest.mark.parametrize("changed", ["image", "label", "size", "split"])
def test_idx_files_are_told_from_others_by_every_image_and_label(tmp_path: pathlib.Path, changed: str) -> None:
    pixels, labels = _pixels(200), (np.arange(200) % 4).astype(np.uint8)

    def fingerprint(size: int = 6) -> str:
        write_idx(tmp_path / _IMAGES, pixels)
        write_idx(tmp_path / _LABELS, labels)
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
def test_a_folder_is_told_from_others_by_every_file(tmp_path: pathlib.Path, change: str) -> None:
    for number in range(150):
        file = tmp_path / "ab"[number // 100] / f"{number:03}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"image {number}, never decoded")
    before = open_dataset(tmp_path, 8).fingerprint
    assert open_dataset(tmp_path, 8).fingerprint == before
    assert open_dataset(tmp_path, 9).fingerprint != before
    _CHANGES[change](file)
    assert open_dataset(tmp_path, 8).fingerprint != before


def test_gray_images_in_three_colours_are_others(tmp_path: pathlib.Path) -> None:
    dataset = open_dataset(write_idx_dataset(tmp_path), 12)
    assert to_rgb(dataset).fingerprint != dataset.fingerprint
