"""Grids of images: every image is in its place, with its caption below."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.cli.generate import generate
from runtime.generator import Generator
from runtime.image_grid import class_caption, grid_image, grid_size, save_grid


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_in_its_place(tmp_path: pathlib.Path, channels: int) -> None:
    images = np.stack([np.full((100, 100, channels), 50 * number, np.uint8) for number in range(5)])
    save_grid(tmp_path / "grid.png", images, [str(number) for number in range(5)], columns=3)
    with Image.open(tmp_path / "grid.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape == (2 * 118 + 4, 3 * 104 + 4)
    for number in range(5):
        top, left = 4 + number // 3 * 118, 4 + number % 3 * 104
        assert (pixels[top : top + 100, left : left + 100] == 50 * number).all()
        assert pixels[top + 100 : top + 114, left : left + 100].min() < 128  # its caption
    assert (pixels[122:, 212:] == 255).all()  # the sixth place is empty


@pytest.mark.parametrize(
    "caption", ["a name of very many words, which are far too wide for it", "two\nlines\tand more", "W" * 500]
)
def test_a_caption_stays_below_its_own_image(tmp_path: pathlib.Path, caption: str) -> None:
    images = np.full((3, 100, 100, 1), 255, np.uint8)
    save_grid(tmp_path / "grid.png", images, ["", caption, ""], columns=3)
    with Image.open(tmp_path / "grid.png") as sheet:
        dark = np.asarray(sheet.convert("L")) < 128
    assert dark[104:118, 108:208].any()
    assert not dark[:, :108].any()
    assert not dark[:, 208:].any()
    assert not dark[:104].any()
    assert not dark[118:].any()


def test_the_size_of_a_grid_is_known_before_it_is_made() -> None:
    for side, count, columns in ((8, 5, 2), (100, 3, 3), (97, 1, 1)):
        images = np.zeros((count, side, side, 1), np.uint8)
        assert grid_image(images, [""] * count, columns).size == grid_size(count, columns, side, side)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("dress", "dress"),
        ("T-shirt/top", "T-shirt/top"),
        ("Caf\u00e9 cr\u00e8me", "Cafe creme"),
        ("two\nlines", "two lines"),
        ("", "class 7"),
        ("\u9774\u5b50", "class 7"),
        ("\u0431\u043e\u0442\u0438\u043d\u043e\u043a", "class 7"),
        ("Stra\u00dfe", "class 7"),
        ("\u0301", "class 7"),
    ],
)
def test_a_name_that_the_font_cannot_write_becomes_the_number(name: str, caption: str) -> None:
    assert class_caption(name, 7) == caption


def test_the_command_writes_a_grid_of_the_requested_images(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "new" / "grid.png"
    line = f"{pixel_artifact} --class 1 --class 0 --count 5 --batch-size 2 --threads 1 --out {file}"
    result = CliRunner().invoke(generate, line, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"grid written to {file}" in result.output
    with Generator.load(pixel_artifact, threads=1) as generator:
        images = generator.generate([1, 0, 1, 0, 1]).images
    assert images is not None
    assert images.shape == (5, 8, 8, 1)
    with Image.open(file) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (3 * (96 + 14 + 4) + 4, 2 * 100 + 4, 3)  # one column for each class
    for number, image in enumerate(images):
        top, left = 4 + 114 * (number // 2), 4 + 100 * (number % 2)
        shown = pixels[top : top + 96, left : left + 96, 0]
        assert (shown == image[:, :, 0].repeat(12, axis=0).repeat(12, axis=1)).all()
