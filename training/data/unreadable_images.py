"""Images that cannot be read: how they are skipped, counted and reported, wherever images are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from runtime.checks import pluralize
from runtime.errors import DataError

_LARGEST_NUMBER_IN_A_ROW = 100

_Image = TypeVar("_Image")


class UnreadableImageError(DataError):
    """One image cannot be read; others of its dataset may be fine."""


class TolerantReader:
    """Reads images one after another, skips those that cannot be read, and reports each of these.

    Where a hundred images in a row cannot be read, or as many as there are, no image is damaged but the disk is gone:
    reading then stops.
    """

    def __init__(self, images: int, warn: Callable[[str], None]) -> None:
        """Make a reader of a dataset.

        Args:
            images: The number of images that there are to read.
            warn: Called with one line about each image that cannot be read.
        """
        self._limit, self._warn = min(_LARGEST_NUMBER_IN_A_ROW, images), warn
        self._in_a_row = 0

    def read(self, load: Callable[[], _Image]) -> _Image | None:
        """Return what `load` returns, or None where it raises `UnreadableImageError`.

        Raises:
            DataError: Too many images in a row cannot be read.
        """
        try:
            image = load()
        except UnreadableImageError as error:
            self._in_a_row += 1
            self._warn(str(error))
            if self._in_a_row >= self._limit:
                count = pluralize(self._in_a_row, "image")
                raise DataError(f"{count} in a row cannot be read, the last one {error}") from error
            return None
        self._in_a_row = 0
        return image
