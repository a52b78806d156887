"""Tokens to latents, latents to pixels, images to a grid."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.cli.generate import generate
from runtime.generator import Generator
from runtime.image_grid import save_grid
from runtime.model.latents import from_uint8, patchify, to_uint8, unpatchify


def test_a_token_is_a_patch_with_its_channels_outermost() -> None:
    tokens = np.arange(4 * 8, dtype=np.float32).reshape(1, 4, 8)  # a grid of 2x2, patches of 2x2, 2 channels
    latents = unpatchify(tokens, grid=2, patch_size=2)
    assert latents.shape == (1, 2, 4, 4)
    assert latents[0, 0].tolist() == [[0, 1, 8, 9], [2, 3, 10, 11], [16, 17, 24, 25], [18, 19, 26, 27]]
    assert (latents[0, 1] == latents[0, 0] + 4).all()


def test_pixels_are_rounded_and_clipped() -> None:
    pixels = np.array([-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 7.0], np.float32).reshape(1, 1, 1, 7)
    assert to_uint8(pixels).reshape(-1).tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert to_uint8(np.zeros((2, 3, 4, 5), np.float32)).shape == (2, 4, 5, 3)


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_latents_make_the_tokens_that_make_them(patch_size: int) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 5, 6, 6), np.float32)
    tokens = patchify(latents, patch_size)
    assert tokens.shape == (2, (6 // patch_size) ** 2, 5 * patch_size**2)
    assert unpatchify(tokens, 6 // patch_size, patch_size).tobytes() == latents.tobytes()


def test_every_value_of_a_pixel_survives_its_way_to_the_model_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 8, 16, 2)
    pixels = from_uint8(images)
    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 2, 8, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert pixels[0, 1, 3, 5] == pytest.approx(images[0, 3, 5, 1] / 127.5 - 1)
    assert to_uint8(pixels).tobytes() == images.tobytes()


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


def test_the_command_writes_a_grid_of_the_images_asked_for(
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
