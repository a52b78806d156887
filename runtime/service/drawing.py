"""What a scheduler draws: the images of one request, and what comes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MarError
from runtime.image_records.record import ImageRecord
from runtime.image_records.subject import Subject
from runtime.requests.inpainting import Edit
from runtime.sampling.settings import Sampling

Pixels = NDArray[np.uint8]
"""The pixels of one image, uint8 [H, W, c]."""


class RetryLaterError(MarError):
    """A request that can succeed later.

    Attributes:
        seconds: After how many seconds it is worth another attempt.
    """

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


class QueueFullError(RetryLaterError):
    """A request that finds too many images waiting."""


class SchedulerClosedError(RetryLaterError):
    """A request that comes, or still waits, when the service ends."""


class DeadlineError(MarError):
    """A request that was not done in time."""

    def __init__(self) -> None:
        super().__init__("the request was not done in time; ask for fewer images or iterations")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Where the time of an image or of a request went.

    Attributes:
        queue_seconds: From the arrival of the request until the batch began, or its first batch.
        draw_seconds: From then until it was drawn, or its last image.
        batch_size: The number of images in the batch, or in its largest batch, those of other requests included.
    """

    queue_seconds: float
    draw_seconds: float
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image of a request, after some of its iterations or after all of them.

    Attributes:
        place: The place of the image in its request, from 0.
        done: The number of iterations that it has behind it.
        total: The number of all its iterations. It is finished if `done` is the same.
        pixels: The tokens known so far, decoded; what is not known yet is grey.
        record: How it was made; None until it is finished.
        timing: Where its time went; None until it is finished.
    """

    place: int
    done: int
    total: int
    pixels: Pixels
    record: ImageRecord | None = None
    timing: Timing | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """A request: images with the same sampling settings. Every value is checked.

    Attributes:
        subjects: What each image shows.
        seeds: The seed of each image.
        indices: The number of each image in the sequence of its seed.
        sampling: Complete sampling settings.
        preset: The preset that they come from, for the records of the images; None for none.
        edit: What all images regenerate a part of; None for complete images.
        partial_images: How many times `show` gets each image before it is finished.
        show: Called with each partial and each finished image, by a thread of the scheduler; it must return at once.
        deadline: The time on `time.monotonic` by which the request must be done; None for no limit.
    """

    subjects: Sequence[Subject]
    seeds: Sequence[int]
    indices: Sequence[int]
    sampling: Sampling
    preset: str | None = None
    edit: Edit | None = None
    partial_images: int = 0
    show: Callable[[Shown], None] | None = None
    deadline: float | None = None

    @property
    def key(self) -> Hashable:
        """What images must have in common to be drawn together: a batch has one plan, and one mask."""
        return self.sampling, self.edit

    def shows_after(self, done: int, total: int) -> bool:
        """Return whether images are shown after `done` of `total` iterations: at equal distances, not at the end."""
        shown = min(self.partial_images, total - 1)
        return any(done == round(total * number / (shown + 1)) for number in range(1, shown + 1))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The images of a request.

    Attributes:
        images: The finished images, one for each subject.
        timing: Where the time went.
    """

    images: Sequence[Shown]
    timing: Timing
