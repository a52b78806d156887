"""Folders of images: classes, cropping, modes of images, and damaged images."""

from __future__ import annotations

import pathlib
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import DataError
from tests.helpers.image_files import save_image, with_flipped_byte
from tests.helpers.tiny_runs import one_sentence
from training.data.datasets import open_dataset


def test_a_photo_is_rotated_by_its_exif_orientation(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    image = Image.new("RGB", (8, 8))
    image.paste("white", (0, 0, 8, 4))  # bright above
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    image.save(tmp_path / "a" / "0.png", exif=exif)
    shown = open_dataset(tmp_path, 8).images(np.array([0]))[0, :, :, 0]
    assert (shown[:, 4:] == 255).all()
    assert (shown[:, :4] == 0).all()


def _all_images(path: pathlib.Path, size: int) -> NDArray[np.uint8]:
    dataset = open_dataset(path, size)
    return dataset.images(np.arange(len(dataset.labels)))


def test_sub_folders_are_classes_in_alphabetical_order(tmp_path: pathlib.Path) -> None:
    for number, (name, files) in enumerate([("zebra", 1), ("ant", 3), ("Mouse", 2)]):
        for index in range(files):
            save_image(tmp_path / name / f"{index}.png", Image.new("RGB", (8, 8), (10 * number, index, 0)))
    save_image(tmp_path / ".hidden" / "0.png", Image.new("RGB", (8, 8)))
    for name in ("._0.png", ".ipynb_checkpoints/0-checkpoint.png"):
        save_image(tmp_path / "ant" / name, Image.new("RGB", (8, 8)))
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == ("Mouse", "ant", "zebra")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert dataset.labels.dtype == np.int64
    assert dataset.channels == 3
    corners = dataset.images(np.array([5, 0, 4]))[:, 0, 0].tolist()
    assert corners == [[0, 0, 0], [20, 0, 0], [10, 2, 0]]  # zebra, the first mouse, the last ant


def test_classes_and_images_do_not_depend_on_the_order_of_directory_entries(tmp_path: pathlib.Path) -> None:
    """A file system lists names as it likes; with twenty of them, not in alphabetical order."""
    shuffled = np.random.default_rng(2).permutation(20).tolist()
    for number in shuffled:
        save_image(tmp_path / f"class-{number:02}" / "0.png", Image.new("RGB", (8, 8)))
        save_image(tmp_path / "class-00" / f"{number:02}.png", Image.new("RGB", (8, 8), (number, 0, 0)))
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == tuple(f"class-{number:02}" for number in range(20))
    of_the_first = dataset.images(np.flatnonzero(dataset.labels == 0))[:, 0, 0, 0].tolist()
    assert of_the_first == [0, *range(20)]  # 0.png, and then those with two digits


def test_images_of_a_class_may_be_in_subfolders_and_have_any_usual_suffix(tmp_path: pathlib.Path) -> None:
    names = ("a.png", "b.JPG", "deeper/c.jpeg", "deeper/still/d.bmp", "e.webp", "f.tif", "g.TIFF", "h.gif", "i.ppm")
    for name in names:
        save_image(tmp_path / "class" / name, Image.new("RGB", (8, 8), "gray"))
    assert _all_images(tmp_path, 8).shape == (9, 8, 8, 3)
    assert len(open_dataset(tmp_path, 8).notes) == 1  # nothing is left out


@pytest.mark.parametrize(("split", "classes"), [("train", ("a",)), ("test", ("b",))])
def test_a_split_is_a_folder_above_the_classes(tmp_path: pathlib.Path, split: str, classes: tuple[str, ...]) -> None:
    save_image(tmp_path / "train" / "a" / "0.png", Image.new("RGB", (8, 8)))
    save_image(tmp_path / "test" / "b" / "0.png", Image.new("RGB", (8, 8)))
    assert open_dataset(tmp_path, 8, split).classes == classes


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_square_of_an_oblong_image_is_kept(tmp_path: pathlib.Path, turned: bool) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = (255, 0, 0), np.arange(100).reshape(10, 10, 1), (0, 0, 255)
    image = wide.transpose(1, 0, 2) if turned else wide
    save_image(tmp_path / "class" / "0.png", Image.fromarray(np.ascontiguousarray(image)))
    expected = wide[:, 10:20].transpose(1, 0, 2) if turned else wide[:, 10:20]
    assert np.array_equal(_all_images(tmp_path, 10)[0], expected)  # no resizing, so to the last bit


@pytest.mark.parametrize("size", [(7, 7), (64, 64), (100, 31), (31, 100), (33, 32), (1, 1), (3, 200)])
def test_images_of_any_size_are_scaled_to_the_size_of_the_model(tmp_path: pathlib.Path, size: tuple[int, int]) -> None:
    save_image(tmp_path / "class" / "0.png", Image.new("RGB", size, (10, 120, 230)))
    actual = _all_images(tmp_path, 16)
    assert actual.shape == (1, 16, 16, 3)
    assert actual.dtype == np.uint8
    assert (actual == (10, 120, 230)).all()


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
def test_every_mode_of_png_is_converted_to_rgb(
    tmp_path: pathlib.Path, image: Image.Image, expected: tuple[int, int, int]
) -> None:
    save_image(tmp_path / "class" / "0.png", image)
    actual = _all_images(tmp_path, 8)
    assert actual.shape == (1, 8, 8, 3)
    assert (actual == expected).all(), actual[0, 0, 0]


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
def test_the_error_about_a_damaged_image_names_its_path(tmp_path: pathlib.Path, content: bytes) -> None:
    good = save_image(tmp_path / "class" / "0.png", Image.new("RGB", (8, 8)))
    good.with_name("1.png").write_bytes(content)
    dataset = open_dataset(tmp_path, 8)
    dataset.images(np.array([0]))
    with pytest.raises(DataError) as caught:
        dataset.images(np.array([0, 1]))
    assert str(good.with_name("1.png")) in one_sentence(caught)


def test_the_image_that_the_damaged_ones_are_made_from_is_readable(tmp_path: pathlib.Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "0.png").write_bytes(_png())
    assert np.ptp(_all_images(tmp_path, 32)) > 200


def test_an_image_with_a_flipped_byte_is_read_or_refused_but_never_crashes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "class").mkdir()
    file, whole, refused = tmp_path / "class" / "0.png", _png(), 0
    file.write_bytes(whole)
    dataset = open_dataset(tmp_path, 32)
    for at in range(0, len(whole), 13):
        file.write_bytes(with_flipped_byte(whole, at))
        try:
            assert dataset.images(np.array([0])).shape == (1, 32, 32, 3)
        except DataError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 0
