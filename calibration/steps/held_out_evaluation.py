"""Compares sampling settings on held-out images: error and time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.seeds import STEP_EVALUATION_SEED
from calibration.steps.solvers import REFERENCE, REFERENCE_STEPS, is_deterministic
from runtime.distance import relative_l2, sqnr_db
from runtime.generator import Generator
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling

EVAL_COUNT = 8
"""The number of held-out images."""


@dataclasses.dataclass(frozen=True)
class SettingsEvaluation:
    """Error and time of one set of sampling settings.

    Errors are None if the diffusion chains add noise: then no image is the right one.

    Attributes:
        name: A name for people, such as that of a preset.
        head_evaluations: How often the head runs for a token, in all iterations together.
        milliseconds: The median time of an image that is generated alone.
        relative_l2: The relative L2 distance of latents from long chains, the geometric mean over images.
        worst: The largest distance of an image.
    """

    name: str
    head_evaluations: int
    milliseconds: float
    relative_l2: float | None
    worst: float | None

    @property
    def sqnr_db(self) -> float | None:
        """The mean distance as SQNR, in dB; larger is better."""
        return None if self.relative_l2 is None else sqnr_db(self.relative_l2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `sqnr_db`, for JSON."""
        return {**dataclasses.asdict(self), "sqnr_db": self.sqnr_db}


def evaluate_settings(
    generator: Generator, settings: Mapping[str, Sampling], advance: Callable[[int], None]
) -> list[SettingsEvaluation]:
    """Generate `EVAL_COUNT` images with each of `settings` and compare them with long chains.

    The reference of each has the same iterations and guidance. Settings take turns, so that other load on the
    machine affects the times of all alike.

    Args:
        generator: Generates the images.
        settings: The settings, by name.
        advance: Called with the number of images done: `image_count(settings)` in all.

    Returns:
        One evaluation for each of `settings`, in their order.
    """
    tokens = generator.manifest.model.tokens
    reference_settings = {name: _reference_settings(sampling, tokens) for name, sampling in settings.items()}
    references = {
        sampling: _reference_latents(generator, sampling, advance)
        for sampling in dict.fromkeys(reference_settings.values())
        if sampling is not None
    }
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    distances: dict[str, list[float]] = {name: [] for name in settings}
    for number in range(EVAL_COUNT):
        for name, sampling in settings.items():
            started = time.perf_counter()
            latents = _latents(generator, sampling, range(number, number + 1))
            seconds[name].append(time.perf_counter() - started)
            reference = reference_settings[name]
            if reference is not None:
                distances[name].append(relative_l2(latents[0], references[reference][number]))
            advance(1)
    return [
        SettingsEvaluation(
            name=name,
            head_evaluations=build_plan(tokens, sampling).head_evaluations,
            milliseconds=1e3 * float(np.median(seconds[name])),
            relative_l2=_geometric_mean(distances[name]) if distances[name] else None,
            worst=max(distances[name], default=None),
        )
        for name, sampling in settings.items()
    ]


def image_count(settings: Mapping[str, Sampling], tokens: int) -> int:
    """Return how many images `evaluate_settings` generates, for a model with so many tokens."""
    references = {_reference_settings(sampling, tokens) for sampling in settings.values()} - {None}
    return EVAL_COUNT * (len(settings) + len(references))


def _reference_settings(sampling: Sampling, tokens: int) -> Sampling | None:
    """The same iterations with long chains; None if the chains of `sampling` add noise."""
    if not is_deterministic(build_plan(tokens, sampling)):
        return None
    return REFERENCE.sampling(sampling, REFERENCE_STEPS)


def _reference_latents(generator: Generator, sampling: Sampling, advance: Callable[[int], None]) -> NDArray[np.float32]:
    latents = _latents(generator, sampling, range(EVAL_COUNT))
    advance(EVAL_COUNT)
    return latents


def _latents(generator: Generator, sampling: Sampling, numbers: range) -> NDArray[np.float32]:
    """The latents [B, C, h, w] of held-out images, classes in turn."""
    labels = [number % generator.manifest.model.class_num for number in numbers]
    return generator.generate(
        labels, seed=STEP_EVALUATION_SEED, index=numbers, sampling=sampling, decode_batch=0
    ).latents


def _geometric_mean(distances: list[float]) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(distances, 1e-15)))))
