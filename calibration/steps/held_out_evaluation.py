"""How a plan does on images it was not found by, beside other ways to draw: error and time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.steps.solvers import REFERENCE, REFERENCE_STEPS, deterministic
from calibration.steps.timing import with_presets
from runtime.distance import relative_l2
from runtime.generator import Generator
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling

IMAGES = 8
_SEED = 2**29 + 1  # apart from those that plans are found by


@dataclasses.dataclass(frozen=True)
class Judged:
    """One way to draw. Errors are None where its chains have noise of their own, so that nothing is right.

    `relative_l2` is the distance of a typical image, the geometric mean over them; `worst` the largest.
    """

    name: str
    head_evaluations: int
    milliseconds: float  # median, an image drawn alone
    relative_l2: float | None
    worst: float | None

    @property
    def decibels(self) -> float | None:
        return None if self.relative_l2 is None else 20 * float(np.log10(self.relative_l2))

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "db": self.decibels}


def judged(generator: Generator, ways: Mapping[str, Sampling], advance: Callable[[int], None]) -> list[Judged]:
    """Draw some images in every one of `ways`, in turn; each is compared with long chains in its own iterations.

    `advance` is told of every image, `judgements(ways)` in all.
    """
    tokens = generator.manifest.model.tokens
    plans = {name: build_plan(tokens, sampling) for name, sampling in ways.items()}
    references = {
        reference: _reference(generator, reference, advance)
        for reference in dict.fromkeys(_reference_of(sampling, tokens) for sampling in ways.values())
        if reference is not None
    }
    drawing = with_presets(generator, ways)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    distances: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(IMAGES):
        for name, sampling in ways.items():
            started = time.perf_counter()
            found = drawing.generate(
                _labels(generator, range(number, number + 1)), seed=_SEED, index=[number], preset=name
            )
            seconds[name].append(time.perf_counter() - started)
            reference = _reference_of(sampling, tokens)
            if reference is not None:
                right = references[reference][number]
                distances[name].append(relative_l2(found.latents[0], right))
            advance(1)
    return [
        Judged(
            name=name,
            head_evaluations=plans[name].head_evaluations,
            milliseconds=1e3 * float(np.median(seconds[name])),
            relative_l2=float(np.exp(np.mean(np.log(np.maximum(distances[name], 1e-15))))) if distances[name] else None,
            worst=max(distances[name], default=None),
        )
        for name in ways
    ]


def judgements(ways: Mapping[str, Sampling], tokens: int) -> int:
    """The images that `judged` draws."""
    references = {_reference_of(sampling, tokens) for sampling in ways.values()} - {None}
    return IMAGES * (len(ways) + len(references))


def _reference_of(sampling: Sampling, tokens: int) -> Sampling | None:
    """The same iterations with long chains, for chains that have no noise of their own."""
    if not deterministic(build_plan(tokens, sampling)):
        return None
    return REFERENCE.sampling(sampling, REFERENCE_STEPS)


def _reference(generator: Generator, sampling: Sampling, advance: Callable[[int], None]) -> NDArray[np.float32]:
    """Latents [B, C, h, w]."""
    drawing = with_presets(generator, {"reference": sampling})
    numbers = range(IMAGES)
    found = drawing.generate(_labels(generator, numbers), seed=_SEED, index=numbers, preset="reference")
    advance(IMAGES)
    return found.latents


def _labels(generator: Generator, numbers: range) -> list[int]:
    """Classes in turn."""
    return [number % generator.manifest.model.class_num for number in numbers]
