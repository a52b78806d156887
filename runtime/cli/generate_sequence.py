"""Which images `mar generate` makes: classes or prompts, and seeds, in turn, from one image of the sequence on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from runtime.checks import check_int, pluralize, truncate
from runtime.errors import RequestError
from runtime.image_records.subject import PromptText, Subject
from runtime.requests.validation import check_seed

MAX_COUNT = 100_000
"""The most images of one command."""

_LAST_INDEX = 2**64 - 1
_SHARD = re.compile(r"([0-9]{1,5})/([0-9]{1,5})")


@dataclasses.dataclass(frozen=True)
class ImageSequence:
    """Images `first` to `first + count - 1` of a sequence that has the subjects in turn and the seeds in turn.

    Attributes:
        subjects: The classes or prompts.
        seeds: The seeds: one, one for each subject, or several with one subject.
        first: The number of the first image.
        count: The number of images.
    """

    subjects: Sequence[Subject]
    seeds: Sequence[int]
    first: int
    count: int

    @property
    def _numbers(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def subjects_of_images(self) -> list[Subject]:
        """The class or prompt of each image."""
        return [self.subjects[number % len(self.subjects)] for number in self._numbers]

    @property
    def seeds_of_images(self) -> list[int]:
        """The seed of each image."""
        return [self.seeds[number % len(self.seeds)] for number in self._numbers]

    @property
    def indices(self) -> list[int]:
        """The number of each image in the sequence of its seed."""
        return [number // len(self.seeds) for number in self._numbers]


def image_sequence(subjects: Sequence[Subject], seeds: Sequence[int], first: int, count: int | None) -> ImageSequence:
    """Return the images that the options of a command line name.

    Args:
        subjects: The classes or prompts.
        seeds: The values of `--seed`.
        first: The value of `--first`.
        count: The value of `--count`. None: one image of each subject, or of each seed if these are more.

    Raises:
        RequestError: An option has a wrong value.
    """
    total = max(len(subjects), len(seeds)) if count is None else count
    check_int("--count", total, 1, MAX_COUNT)
    check_int("--first", first, 0, _LAST_INDEX - total)
    for number, seed in enumerate(seeds):
        if check_seed(seed) in seeds[:number]:
            raise RequestError(f"--seed {seed} is given twice; its images follow from --count, so give it once")
    if len(seeds) > 1 and len(subjects) not in (1, len(seeds)):
        kind, option = ("prompt", "--prompt") if isinstance(subjects[0], PromptText) else ("class", "--class")
        raise RequestError(
            f"{len(seeds)} seeds for {pluralize(len(subjects), kind)}; give one --seed for all images, one for each "
            f"{option}, or several with one {option}"
        )
    return ImageSequence(subjects, seeds, first, total)


def parse_shard(text: str) -> tuple[int, int]:
    """Return K and N of `K/N`; raise `RequestError` if it is no such text."""
    match = _SHARD.fullmatch(text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise RequestError(f"--shard must be K/N with K in 1..N, such as 1/4, found {truncate(text)}")
