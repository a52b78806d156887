"""Conversions between tokens and latents, and between pixels and 8-bit images."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.model.latents import from_uint8, patchify, to_uint8, unpatchify


def test_a_token_is_a_patch_with_its_channels_outermost() -> None:
    tokens = np.arange(4 * 8, dtype=np.float32).reshape(1, 4, 8)  # a grid of 2x2, patches of 2x2, 2 channels
    latents = unpatchify(tokens, grid_shape=(2, 2), patch_size=2)
    assert latents.shape == (1, 2, 4, 4)
    assert latents[0, 0].tolist() == [[0, 1, 8, 9], [2, 3, 10, 11], [16, 17, 24, 25], [18, 19, 26, 27]]
    assert (latents[0, 1] == latents[0, 0] + 4).all()


def test_pixels_are_rounded_and_clipped() -> None:
    pixels = np.array([-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 7.0], np.float32).reshape(1, 1, 1, 7)
    assert to_uint8(pixels).reshape(-1).tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert to_uint8(np.zeros((2, 3, 4, 5), np.float32)).shape == (2, 4, 5, 3)


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_patchify_is_the_inverse_of_unpatchify(patch_size: int) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 5, 6, 6), np.float32)
    tokens = patchify(latents, patch_size)
    assert tokens.shape == (2, (6 // patch_size) ** 2, 5 * patch_size**2)
    assert unpatchify(tokens, (6 // patch_size, 6 // patch_size), patch_size).tobytes() == latents.tobytes()


def test_every_8_bit_value_survives_the_conversion_to_float_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 8, 16, 2)
    pixels = from_uint8(images)
    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 2, 8, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert pixels[0, 1, 3, 5] == pytest.approx(images[0, 3, 5, 1] / 127.5 - 1)
    assert to_uint8(pixels).tobytes() == images.tobytes()
