"""The fuzzed surfaces that are images: files in every format that is read, masks, and IDX files."""

from __future__ import annotations

import gzip
import pathlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from runtime.image_files import read_image, read_mask, read_square
from tests.fuzz.surface import Surface, WrongResultError, digest
from tests.helpers.tiny_runs import write_idx_dataset
from training.data.datasets import open_dataset

_SIDE = 8  # of the square that is read
_SIZE = (11, 9)
_BACKGROUND = (10, 20, 30)
_FORMATS = (
    "png", "jpg", "bmp", "gif", "tif", "webp", "avif", "jp2", "ppm", "tga", "pcx", "sgi", "qoi", "ico", "dds", "dib",
    "mpo",
)  # fmt: skip


def _pixels(channels: int) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(channels).integers(0, 256, (_SIZE[1], _SIZE[0], channels), dtype=np.uint8)
    return pixels if channels > 1 else pixels[..., 0]


def _make_images(folder: pathlib.Path) -> None:
    """An image of each format, and PNG and JPEG with what an image can carry: alpha, palette, profile, orientation."""
    rgb, rgba, gray = (Image.fromarray(_pixels(channels)) for channels in (3, 4, 1))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in _FORMATS:
        (rgba if suffix == "ico" else rgb).save(folder / f"plain.{suffix}")
    rgba.save(folder / "alpha.png")
    rgba.save(folder / "alpha.webp")
    gray.save(folder / "gray.png", transparency=7)
    rgb.quantize(5).save(folder / "palette.png", transparency=bytes((0, 80, 255)))
    rgb.save(folder / "profile.png", icc_profile=profile)
    rgb.save(folder / "oriented.jpg", exif=exif, icc_profile=profile)
    rgb.save(folder / "deflate.tif", compression="tiff_adobe_deflate")
    Image.fromarray(_pixels(1).astype(np.uint16) * 200).save(folder / "deep.png")
    text = PngImagePlugin.PngInfo()
    text.add_itxt("comment", "é" * 9, zip=True)
    rgb.save(folder / "frames.png", save_all=True, append_images=[rgb], pnginfo=text)


def _read_images(folder: pathlib.Path) -> bytes:
    read: list[object] = []
    for file in sorted(folder.iterdir()):
        square, lines = read_square(file, _SIDE, _BACKGROUND)
        if square.shape != (_SIDE, _SIDE, 3) or square.dtype != np.uint8:
            raise WrongResultError(f"a square of {square.shape}, {square.dtype}")
        image, _ = read_image(file, _BACKGROUND)
        mask, _ = read_mask(file)
        if image.mode != "RGB" or mask.shape != image.size[::-1]:
            raise WrongResultError(f"an image of mode {image.mode} and size {image.size}, a mask of {mask.shape}")
        read += [square, lines, np.asarray(image), mask]
    return digest(*read)


def _make_idx(folder: pathlib.Path) -> None:
    write_idx_dataset(folder / "plain")
    packed = write_idx_dataset(folder / "packed")
    for file in [*packed.iterdir()]:
        (packed / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def _read_idx(folder: pathlib.Path) -> bytes:
    read: list[object] = []
    for name in ("plain", "packed"):
        dataset = open_dataset(folder / name, 12)
        images = dataset.images(np.arange(len(dataset.labels)))
        if len(images) != len(dataset.labels) or images.shape[1:] != (12, 12, 1):
            raise WrongResultError(f"images of {images.shape} for {len(dataset.labels)} labels")
        read += [images, dataset.labels, dataset.classes]
    return digest(*read)


IMAGE_SURFACES = {
    "images": Surface(_make_images, ("*",), _read_images),
    "IDX files": Surface(_make_idx, ("*/*",), _read_idx),
}
"""The surfaces of this module, by name."""
