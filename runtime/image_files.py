"""Image files as every command reads them: upright, in sRGB, 8 bits a channel, and without hidden colours.

Whatever Pillow says about a file, by an exception or a warning, becomes one line that begins with the file's name.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from runtime.checks import printable, truncate
from runtime.errors import RequestError

# Formats that hold an image of pixels. Others that Pillow knows run a program (EPS), or hold no image of their own.
_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "QOI": (".qoi",),
    "PSD": (".psd",),
    "ICO": (".ico",),
    "DDS": (".dds",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""The endings of names, in lower case, of the files that are images."""
BACKGROUND = "white"
"""The name of the default colour under transparent pixels."""

_HALF = 128  # of 255: the darkest gray that counts as white, and the least alpha that counts as opaque
_CLOSE_TO_SRGB = 2  # levels of 255 by which profiles of sRGB itself differ

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)


class ImageFileError(RequestError):
    """A file that is not a readable image."""


class ImageBytes(io.BytesIO):
    """The content of an image file that is in memory. Its text is its name, as that of a path is."""

    def __init__(self, content: bytes, name: str) -> None:
        """`name` is what messages call it."""
        super().__init__(content)
        self._name = name

    def __str__(self) -> str:
        return self._name


ImageSource = pathlib.Path | ImageBytes
"""What an image is read from."""


def parse_color(name: str, text: str) -> Color:
    """Return a colour from its name or from #rrggbb; raise `RequestError`, which names the option `name`, otherwise."""
    with contextlib.suppress(ValueError):
        color = ImageColor.getrgb(text)
        if len(color) == 3:  # without an alpha
            return color
    raise RequestError(f"{name} must be a colour such as white or #808080, found {truncate(text)}")


def read_image(path: ImageSource, background: Color) -> tuple[Image.Image, list[str]]:
    """Read an image over a background that shows where it is transparent.

    Returns:
        The image in mode RGB, and one line for each defect that reading can live with.

    Raises:
        ImageFileError: It cannot be read.
    """
    with _reading(path) as lines:
        return _over(*_decode(path, lines), background), lines


def read_square(path: pathlib.Path, side: int, background: Color) -> tuple[NDArray[np.uint8], list[str]]:
    """Read the square in the middle of an image, as large as it can be, scaled to `side` pixels.

    The other arguments, and what is returned beside the pixels uint8 [side, side, 3], are those of `read_image`.

    Raises:
        ImageFileError: It cannot be read.
    """
    with _reading(path) as lines:
        _check_regular(path)
        image = _over(*_decode(path, lines), background)
        width, height = image.size
        if min(image.size) < side:
            lines.append(f"{printable(str(path))}: {width}x{height}, enlarged to {side}x{side}")
        return np.asarray(middle_square(image, side)), lines


def to_pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image, uint8 [H, W, c], in gray if c, `channels`, is 1."""
    return np.asarray(image.convert("L"))[..., None] if channels == 1 else np.asarray(image)


def middle_square(
    image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Return the square in the middle of an image, as large as it can be, scaled to `side` pixels.

    The scaled image has whole pixels, and the crop begins at one of them. Nothing beyond the crop is computed.
    """
    scale = side / min(image.size)
    scaled = [max(side, round(length * scale)) for length in image.size]
    starts = [(length - side) // 2 for length in scaled]
    left, top = (start * length / of for start, length, of in zip(starts, image.size, scaled, strict=True))
    right, bottom = ((start + side) * length / of for start, length, of in zip(starts, image.size, scaled, strict=True))
    width, height = image.size
    return image.resize((side, side), resampling, (left, top, min(right, width), min(bottom, height)))


def square_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Return the square in the middle of a mask [H, W], scaled to bool [side, side].

    A pixel is true if any part of it is, so that a thin line does not get lost.
    """
    shares = middle_square(Image.fromarray(mask.astype(np.float32)), side, Image.Resampling.BOX)
    return np.asarray(shares) > 0


def read_mask(path: pathlib.Path) -> tuple[NDArray[np.bool_], list[str]]:
    """Read a mask: true where it is erased, or where it is white if it is opaque everywhere.

    Returns:
        Bool [H, W], and one line for each defect that reading can live with.

    Raises:
        ImageFileError: It cannot be read.
    """
    with _reading(path) as lines:
        image, alpha = _decode(path, lines)
        if alpha is not None:
            return np.asarray(alpha) < _HALF, lines
        return np.asarray(image.convert("L")) >= _HALF, lines


def read_transparency(path: ImageSource) -> NDArray[np.bool_]:
    """Return where an image is transparent, bool [H, W].

    Raises:
        ImageFileError: It cannot be read.
    """
    with _reading(path) as lines:
        if isinstance(path, pathlib.Path):
            _check_regular(path)
        image, alpha = _decode(path, lines)
        return np.zeros(image.size[::-1], bool) if alpha is None else np.asarray(alpha) < _HALF


def read_size(path: ImageSource, formats: Sequence[str]) -> tuple[int, int]:
    """Return the width and height of an image, without decoding its pixels.

    Args:
        path: The file.
        formats: The formats that it may have, by Pillow's names.

    Raises:
        ImageFileError: It is no readable image, or of another format.
    """
    with _reading(path), Image.open(path) as file:
        if file.format not in formats:
            raise ImageFileError(f"{printable(str(path))}: expected {' or '.join(formats)}, found {file.format}")
        width, height = file.size
        return width, height


def read_text(path: pathlib.Path, keyword: str, exif_tag: int) -> str | None:
    """Return a text that an image file carries, without decoding its pixels.

    Args:
        path: The file.
        keyword: The keyword of the text in a PNG.
        exif_tag: The EXIF tag of the text in any other format.

    Returns:
        The text; None if it carries none.

    Raises:
        ImageFileError: It is no readable image.
    """
    with _reading(path), Image.open(path) as file:
        text = file.info.get(keyword) if file.format == "PNG" else file.getexif().get(exif_tag)
        return str(text) if isinstance(text, str) else None


@contextlib.contextmanager
def _reading(path: ImageSource) -> Iterator[list[str]]:
    """Collect the warnings of Pillow as lines, and raise `ImageFileError` for whatever else it meets."""
    lines: list[str] = []
    name = printable(str(path))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", ResourceWarning)  # about Python's files, such as a pipe, not the image
            yield lines
    except ImageFileError:
        raise
    except MemoryError as error:
        raise ImageFileError(f"{name}: not a readable image (there is not enough memory for it)") from error
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{name}: not a readable image (too many pixels; scale it down first)") from error
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{name}: not a readable image (unknown format)") from error
    # Pillow passes on any exception of its parsers, such as SyntaxError and struct.error.
    except Exception as error:
        reason = printable(str(getattr(error, "strerror", None) or error or type(error).__name__))
        raise ImageFileError(f"{name}: not a readable image ({reason})") from error
    for warning in caught:
        large = issubclass(warning.category, Image.DecompressionBombWarning)
        note = "so many pixels that it takes much memory" if large else f"Pillow warns: {warning.message}"
        lines.append(f"{name}: {printable(note)}")


def _check_regular(path: pathlib.Path) -> None:
    """Raise `ValueError` for what is no file on a disk, because a pipe that lies in a dataset would be waited for."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")


def _decode(path: ImageSource, lines: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours of an image, mode RGB, and its alpha, mode L, or None where it is opaque everywhere."""
    with Image.open(path) as file:
        if file.format not in _SUFFIXES:
            raise ImageFileError(
                f"{printable(str(path))}: not a readable image (the format {file.format} is not supported)"
            )
        profile = file.info.get("icc_profile")
        _scale_transparent_color(file)
        colors, alpha = _split_alpha(ImageOps.exif_transpose(file))
    if profile:
        try:
            return _to_srgb(colors, profile), alpha
        except (ValueError, OSError, TypeError, ImportError, ImageCms.PyCMSError) as error:
            lines.append(f"{printable(str(path))}: read as sRGB, its colour profile cannot be used ({error})")
    return _converted(colors, "RGB"), alpha


def _scale_transparent_color(file: Image.Image) -> None:
    """Scale the transparent colour of a PNG to 8 bits, as Pillow scales its pixels but not that colour."""
    clear, tiles = file.info.get("transparency"), getattr(file, "tile", [])
    stored = tiles[0].args if tiles else None
    if stored == "RGB;16B" and isinstance(clear, tuple):
        file.info["transparency"] = tuple(value >> 8 for value in clear)
    elif stored in ("L;2", "L;4") and isinstance(clear, int):
        file.info["transparency"] = clear * (85 if stored == "L;2" else 17)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return an image of 8 bits a channel without alpha, gray where it was gray, and the alpha."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are numbers of 32 bits; save it with 8 or 16 bits a channel")
        clear = image.info.get("transparency")
        alpha = None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        return Image.fromarray((values.astype(np.int64) // 257).astype(np.uint8)), alpha
    if not image.has_transparency_data:
        return image, None
    gray = image.mode in ("1", "L", "LA", "La")
    whole = _converted(_converted(image, "LA") if image.mode == "La" else image, "RGBA")
    alpha = whole.getchannel("A")
    return whole.getchannel("R") if gray else whole.convert("RGB"), None if alpha.getextrema()[0] == 255 else alpha


def _over(image: Image.Image, alpha: Image.Image | None, background: Color) -> Image.Image:
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, background), alpha)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image in mode RGB, with the colours that its ICC profile says."""
    mode, transform = _srgb_transform(profile)
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode not in ("1", "L")):
        raise ValueError(f"it is a profile of {mode}, the image has {image.mode}")
    if transform is None:
        return _converted(image, "RGB")
    converted = ImageCms.applyTransform(_converted(image, mode), transform)
    assert converted is not None
    return converted


@functools.lru_cache(maxsize=16)
def _srgb_transform(profile: bytes) -> tuple[str, Any]:
    """Return the mode that a profile describes, and the conversion from it to sRGB; None if it is sRGB itself."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
    if mode is None:
        raise ValueError(f"it is a profile of {space}")
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":
        levels = np.array(np.meshgrid(*[np.arange(0, 256, 15)] * 3)).reshape(3, -1).T.astype(np.uint8)  # [18^3, 3]
        converted = ImageCms.applyTransform(Image.fromarray(levels[None]), transform)
        if abs(np.asarray(converted).astype(int)[0] - levels).max() <= _CLOSE_TO_SRGB:
            return mode, None
    return mode, transform
