"""Grids of images: every image is in its place, with its caption below."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.cli.generate import generate
from runtime.generator import Generator
from runtime.image_grid import save_grid


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
    assert pixels.shape == (96 + 14 + 4 + 4, 5 * 100 + 4, 3)
    for number, image in enumerate(images):
        shown = pixels[4:100, 4 + 100 * number : 100 + 100 * number, 0]
        assert (shown == image[:, :, 0].repeat(12, axis=0).repeat(12, axis=1)).all()
