"""What a generator returns for one batch."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import RequestError
from runtime.image_records.record import ImageRecord
from runtime.sampling.plan import Plan

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Result:
    """The images of one batch.

    Attributes:
        latents: The generated latents, float32 [B, C, h, w]. For a model of pixels these are the pixels, -1 to 1.
        images: The decoded images, uint8 [B, H, W, 3] or [B, H, W, 1]. None if the artifact has no decoder, or
            nothing was decoded (`decode_batch=0`).
        plan: The plan that was executed.
        records: How each image was made, B of them; image files carry it.
    """

    latents: NDArray[np.float32]
    images: NDArray[np.uint8] | None
    plan: Plan
    records: tuple[ImageRecord, ...] = ()

    def pil(self) -> list[Image.Image]:
        """Return the images as Pillow images, in mode RGB or L.

        Raises:
            RequestError: There are no images.
        """
        from runtime.image_grid import to_pil

        return [to_pil(image) for image in self._pixels()]

    def save(self, folder: str | pathlib.Path) -> list[pathlib.Path]:
        """Write each image as a PNG file into a folder, with how it was made, and its line into `index.jsonl` there.

        A file is named by class, seed and index. An image that the folder has already is left as it is.

        Args:
            folder: The folder, which is made if it is missing.

        Returns:
            The files, in the order of the images.

        Raises:
            RequestError: There are no images, or a file of this name has an image of other settings.
            MarError: The folder cannot be written, or another process fills it.
        """
        from runtime.image_records.folder import ImageFolder

        if not isinstance(folder, (str, os.PathLike)):
            raise RequestError(f"a folder must be a path, found {truncate(folder)}")
        pixels = self._pixels()
        with ImageFolder(pathlib.Path(folder)) as images:
            images.add(self.records, pixels)
            images.complete(self.records)
            return [images.folder / images.file_of(record) for record in self.records]

    def _pixels(self) -> NDArray[np.uint8]:
        if self.images is None:
            raise RequestError(
                "there are no images: the artifact has no decoder, or decode_batch was 0; use result.latents"
            )
        return self.images
