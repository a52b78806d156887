"""Files of images in tests: noise, IDX names, saved images, and damaged bytes."""

from __future__ import annotations

import pathlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def noise_images(images: int = 5, height: int = 6, width: int = 6) -> NDArray[np.uint8]:
    """Noise without a zero, so that it differs from padding everywhere."""
    return np.random.default_rng(1).integers(1, 256, (images, height, width), dtype=np.uint8)


def with_flipped_byte(packed: bytes, at: int) -> bytes:
    return packed[:at] + bytes((packed[at] ^ 0xFF,)) + packed[at + 1 :]


def save_image(file: pathlib.Path, image: Image.Image) -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file
