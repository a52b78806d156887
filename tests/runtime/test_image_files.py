"""Reading image files of many kinds: the pixels that are read, and the messages about files that cannot be read."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from runtime.errors import RequestError
from runtime.image_files import (
    ImageFileError,
    parse_color,
    read_image,
    read_mask,
    read_square,
    read_transparency,
)

WHITE, GREEN = (255, 255, 255), (10, 200, 10)
HIDDEN = (255, 0, 255)


def pixels(path: pathlib.Path, background: tuple[int, int, int] = WHITE) -> NDArray[np.uint8]:
    image, lines = read_image(path, background)
    assert lines == []
    assert image.mode == "RGB"
    return np.asarray(image)


def _half_clear(mode: str) -> Image.Image:
    """4x2 pixels: the left half shows GREEN, the right half hides another colour under alpha 0."""
    rgba = np.full((2, 4, 4), (*GREEN, 255), np.uint8)
    rgba[:, 2:] = (*HIDDEN, 0)
    return Image.fromarray(rgba).convert(mode)


def _palette() -> Image.Image:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([*HIDDEN, *GREEN])
    image.paste(1, (0, 0, 2, 2))
    return image


def _save_transparent(folder: pathlib.Path, kind: str) -> pathlib.Path:
    file = folder / {"tiff": "a.tif", "webp": "a.webp", "gif": "a.gif"}.get(kind, "a.png")
    if kind in ("palette", "gif"):
        _palette().save(file, transparency=0)
    elif kind == "palette-of-alphas":
        _palette().save(file, transparency=b"\x00\xff")
    elif kind == "one-colour":
        _half_clear("RGBA").convert("RGB").save(file, transparency=HIDDEN)
    elif kind == "webp":
        _half_clear("RGBA").save(file, lossless=True, exact=True)
    else:
        _half_clear("RGBA").save(file)
    return file


@pytest.mark.parametrize("kind", ["rgba", "palette", "palette-of-alphas", "one-colour", "gif", "tiff", "webp"])
@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), (1, 2, 3)])
def test_transparent_pixels_show_the_background(
    tmp_path: pathlib.Path, kind: str, background: tuple[int, int, int]
) -> None:
    seen = pixels(_save_transparent(tmp_path, kind), background)
    assert (seen[:, :2] == GREEN).all()
    assert (seen[:, 2:] == background).all()


@pytest.mark.parametrize("deep", [False, True])
def test_one_transparent_gray_shows_the_background(tmp_path: pathlib.Path, deep: bool) -> None:
    gray = np.array([[0, 100 * 257, 200 * 257]], np.uint16)
    image = Image.fromarray(gray if deep else (gray // 257).astype(np.uint8))
    image.save(tmp_path / "a.png", transparency=int(np.asarray(image)[0, 1]))
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255, 200]


@pytest.mark.parametrize(
    ("kind", "depth", "row", "clear"),
    [
        (0, 1, b"\x80", b"\0\x01"),
        (0, 2, b"\x80", b"\0\x02"),
        (0, 4, b"\xb0", b"\0\x0b"),
        (2, 16, bytes(range(1, 7)) + bytes(6), bytes(range(1, 7))),
    ],
    ids=["1-bit", "2-bit", "4-bit", "48-bit"],
)
def test_the_transparent_colour_of_a_png_of_any_depth_shows_the_background(
    tmp_path: pathlib.Path, kind: int, depth: int, row: bytes, clear: bytes
) -> None:
    """Two pixels, of which the first has the transparent colour."""
    chunks = [
        (b"IHDR", bytes((0, 0, 0, 2, 0, 0, 0, 1, depth, kind, 0, 0, 0))),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    parts = [
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert pixels(tmp_path / "a.png", GREEN)[0].tolist() == [list(GREEN), [0, 0, 0]]


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path: pathlib.Path) -> None:
    Image.new("LA", (1, 1), (100, 128)).save(tmp_path / "a.png")
    mixed = 255 - (255 - 100) * 128 / 255
    assert abs(pixels(tmp_path / "a.png")[0, 0, 0] - mixed) <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright(tmp_path: pathlib.Path, orientation: int) -> None:
    upright = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turns[orientation])).save(tmp_path / "a.png", exif=exif)
    assert pixels(tmp_path / "a.png")[..., 0].tolist() == upright.tolist()


def _swapped_profile() -> bytes:
    """A profile of RGB in which the tags of red and of blue are swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_converted_from_an_embedded_profile_to_srgb(tmp_path: pathlib.Path, mode: str) -> None:
    image = Image.new("RGB", (4, 4), (200, 60, 20)).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", icc_profile=_swapped_profile())
    assert np.abs(pixels(tmp_path / "a.png").astype(int) - (20, 60, 200)).max() <= 2


def test_a_gray_profile_is_converted_too(tmp_path: pathlib.Path) -> None:
    Image.new("L", (2, 2), 128).save(tmp_path / "a.png", icc_profile=_linear_gray())
    seen = pixels(tmp_path / "a.png")
    assert np.abs(seen.astype(int) - 188).max() <= 2  # sRGB's code of half the light


def _linear_gray() -> bytes:
    """A profile of gray whose numbers are proportional to light."""
    head = bytearray(128)
    head[8:12], head[12:16], head[16:20], head[20:24] = b"\x04\x00\x00\x00", b"mntr", b"GRAY", b"XYZ "
    head[36:40] = b"acsp"
    white = bytes.fromhex("0000f6d6 00010000 0000d32d")
    head[68:80] = white
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + white), (b"kTRC", b"curv" + bytes(8))]
    start, table, body = 128 + 4 + 12 * len(tags), len(tags).to_bytes(4, "big"), b""
    for name, content in tags:
        table += name + (start + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content
    head[0:4] = (start + len(body)).to_bytes(4, "big")
    return bytes(head) + table + body


def test_a_profile_of_srgb_changes_nothing(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=srgb)
    assert pixels(tmp_path / "a.png").tolist() == noise.tolist()


@pytest.mark.parametrize(
    "profile", [b"no profile", _linear_gray(), _swapped_profile()[:300]], ids=["text", "gray", "torn"]
)
def test_a_profile_that_cannot_be_used_is_told(tmp_path: pathlib.Path, profile: bytes) -> None:
    Image.new("RGB", (2, 2), GREEN).save(tmp_path / "a.png", icc_profile=profile)
    image, lines = read_image(tmp_path / "a.png", WHITE)
    assert image.getpixel((0, 0)) == GREEN
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path}/a.png: read as sRGB, its colour profile cannot be used (")


def test_a_square_is_the_middle_of_the_scaled_image(tmp_path: pathlib.Path) -> None:
    """As if the whole image were scaled first, and cropped then."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 131, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = np.asarray(Image.fromarray(noise).resize((84, 32), Image.Resampling.BICUBIC))
    square, lines = read_square(tmp_path / "a.png", 32, WHITE)
    assert lines == []
    assert np.abs(square.astype(int) - whole[:, 26:58]).max() <= 1


@pytest.mark.parametrize("shape", [(60_000, 1), (1, 60_000), (600_000, 1)])
def test_a_long_thin_image_is_scaled_in_little_memory(tmp_path: pathlib.Path, shape: tuple[int, int]) -> None:
    file = tmp_path / "line.png"
    Image.new("RGB", shape, GREEN).save(file)
    script = (
        "import pathlib, resource, sys; from runtime.image_files import read_square;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"pixels, lines = read_square(pathlib.Path({str(file)!r}), 256, (255, 255, 255));"
        f"assert (pixels == {GREEN}).all() and pixels.shape == (256, 256, 3); print(lines);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines, kilobytes = ended.stdout.splitlines()
    assert f"{shape[0]}x{shape[1]}, enlarged to 256x256" in lines
    assert int(kilobytes) < 100_000


def test_memory_that_does_not_suffice_for_an_image_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def load(self: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageFileError, match=r"a\.png: not a readable image \(there is not enough memory for it\)"):
        read_square(tmp_path / "a.png", 8, WHITE)


def test_the_size_of_a_bomb_is_refused_or_told_in_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png", WHITE)[1] == [
            f"{tmp_path}/a.png: so many pixels that it takes much memory"
        ]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageFileError, match=r"a\.png: not a readable image \(too many pixels; scale it down first\)"):
        read_image(tmp_path / "a.png", WHITE)


def test_other_warnings_of_pillow_are_lines_too(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a\nb.png"
    Image.new("RGB", (4, 4), GREEN).save(file)
    content, no_frames = file.read_bytes(), b"acTL" + bytes(8)
    chunk = (8).to_bytes(4, "big") + no_frames + zlib.crc32(no_frames).to_bytes(4, "big")
    file.write_bytes(content[:33] + chunk + content[33:])
    image, lines = read_image(file, WHITE)
    assert image.getpixel((0, 0)) == GREEN
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path}/a\\nb.png: Pillow warns: Invalid APNG")


def test_an_image_from_a_pipe_is_read_without_a_warning(tmp_path: pathlib.Path) -> None:
    """As of `--image <(command)` in a shell."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    Image.new("RGB", (4, 4), GREEN).save(tmp_path / "a.png")
    writer = threading.Thread(target=lambda: pipe.write_bytes((tmp_path / "a.png").read_bytes()))
    writer.start()
    image, lines = read_image(pipe, WHITE)
    writer.join()
    assert (image.getpixel((0, 0)), lines) == (GREEN, [])


@pytest.mark.parametrize("value", [np.float32(0.5), np.int32(70_000), np.int32(-1)])
def test_pixels_that_are_numbers_of_32_bits_are_refused(tmp_path: pathlib.Path, value: np.generic) -> None:
    Image.fromarray(np.full((2, 2), value)).save(tmp_path / "a.tif")
    with pytest.raises(ImageFileError, match="32 bits; save it with 8 or 16 bits a channel"):
        read_image(tmp_path / "a.tif", WHITE)


def test_a_format_that_would_run_a_program_is_refused(tmp_path: pathlib.Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match="the format EPS is not supported"):
        read_image(tmp_path / "a.png", WHITE)


@pytest.mark.parametrize("read", [lambda path: read_square(path, 8, WHITE), read_transparency])
def test_a_pipe_in_a_dataset_is_refused_instead_of_waited_for(
    tmp_path: pathlib.Path, read: Callable[[pathlib.Path], object]
) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match=r"a\.png: not a readable image \(it is not a regular file\)"):
        read(tmp_path / "a.png")


def test_a_mask_is_what_is_erased_or_else_what_is_white(tmp_path: pathlib.Path) -> None:
    hole = np.array([[False, True], [False, False]])
    gray = np.where(hole, 255, 0).astype(np.uint8)
    opaque = np.full((2, 2), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (2, 2), dtype=np.uint8)
    masks = {
        "white.png": Image.fromarray(gray),
        "opaque.png": Image.fromarray(np.dstack([gray, gray, gray, opaque])),
        "erased-white.png": Image.fromarray(np.dstack([opaque, opaque, opaque, opaque - gray])),
        "erased-photo.png": Image.fromarray(np.dstack([noise, noise, noise, opaque - gray])),
        "half-erased.png": Image.fromarray(np.dstack([opaque, np.where(hole, 127, 128).astype(np.uint8)])),
    }
    for name, image in masks.items():
        image.save(tmp_path / name)
        mask, lines = read_mask(tmp_path / name)
        assert (mask.tolist(), lines) == (hole.tolist(), []), name


def test_colours_have_names_and_numbers() -> None:
    assert parse_color("--background", "black") == (0, 0, 0)
    assert parse_color("--background", "#0a0B0c") == (10, 11, 12)
    for wrong in ("", "nope", "#12", "#11223344", "\n"):
        with pytest.raises(RequestError, match="--background must be a colour such as white or #808080, found"):
            parse_color("--background", wrong)
