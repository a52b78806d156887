"""The images of a request: what each of them is, and which random numbers it gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.model.family_config import FamilyConfig
from runtime.requests.subjects import Subjects
from runtime.requests.validation import check_indices, check_noise, check_order, check_seeds
from runtime.storage.stored_files import array_sha256


@dataclasses.dataclass(frozen=True)
class CheckedImages:
    """The images of a request, B of them.

    Attributes:
        subjects: The classes or prompts.
        seeds: The seed of each image.
        indices: The number of each image in the sequence of its seed.
        orders: The generation orders that the caller gives, [B, L]; None for those of the seeds.
        noises: The noise that the caller gives, [T + 1, B, L, D]; None for that of the seeds.
    """

    subjects: Subjects
    seeds: Sequence[int]
    indices: Sequence[int]
    orders: NDArray[np.int64] | None = None
    noises: NDArray[np.float32] | None = None

    def part(self, images: slice) -> CheckedImages:
        """Return some of the images."""
        orders = None if self.orders is None else self.orders[images]
        noises = None if self.noises is None else self.noises[:, images]
        return CheckedImages(self.subjects.part(images), self.seeds[images], self.indices[images], orders, noises)

    def given(self, place: int) -> dict[str, str]:
        """Return the hashes of the arrays that the caller gives for one image, by their names."""
        arrays = {
            **self.subjects.given(place),
            "order": None if self.orders is None else self.orders[place],
            "noise": None if self.noises is None else self.noises[:, place],
        }
        return {name: array_sha256(array) for name, array in arrays.items() if array is not None}


def check_images(
    subjects: Subjects,
    noise_steps: int,
    config: FamilyConfig,
    seed: int | Sequence[int],
    index: Sequence[int] | None,
    order: ArrayLike | None = None,
    noise: ArrayLike | None = None,
) -> CheckedImages:
    """Check the arguments of `Generator.generate` that decide the random numbers of a request.

    Args:
        subjects: The checked classes or prompts, B of them.
        noise_steps: T, the diffusion steps that take noise.
        config: The model's shape.
        seed: One seed, or B of them.
        index: The number of each image in the sequence of its seed, B of them. None: counted.
        order: The generation orders, int [B, L]. None: those of the seeds.
        noise: The noise by token position, float [T + 1, B, L, D]. None: that of the seeds.

    Raises:
        RequestError: An argument is wrong.
    """
    count = len(subjects)
    seeds = check_seeds(seed, count)
    return CheckedImages(
        subjects,
        seeds,
        check_indices(index, seeds),
        None if order is None else check_order(order, count, config),
        None if noise is None else check_noise(noise, count, noise_steps, config),
    )
