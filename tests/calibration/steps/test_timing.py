"""The time of an image."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.steps import timing
from calibration.steps.timing import StepTimes, measure_times
from runtime.generator import Generator
from runtime.sampling.settings import Sampling
from tests.helpers.step_search import SCHEDULE


def test_the_time_of_an_image_is_a_fixed_part_and_its_steps(small_generator: Generator) -> None:
    times = StepTimes(1.0, np.array([0.5, 0.25, 0.25]))
    assert times.seconds([2, 4, 4]) == 4.0
    assert times.uniform_steps([2, 4, 4]) == 3
    assert times.uniform_steps([2, 4, 5]) == 4  # at least as long
    assert times.uniform_steps([4, 4, 4]) == 4
    measured = measure_times(small_generator, SCHEDULE, lambda done: None)
    assert measured.step.shape == (3,)
    assert measured.fixed >= 0
    assert (measured.step >= 0).all()


@pytest.mark.parametrize(
    ("short", "long", "fixed", "step"),
    [
        (1.0 + timing._STEPS[0], 1.0 + timing._STEPS[1], 3.0, 1.0),
        (0.01, timing._STEPS[1] - timing._STEPS[0] + 0.01, 0.0, 1.0),
        (1.0, 0.5, 2.5, 0.0),
    ],
    ids=["quiet", "long chains slowed", "short chains slowed"],
)
def test_times_follow_from_two_lengths_and_are_never_negative(
    short: float,
    long: float,
    fixed: float,
    step: float,
    small_generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two seconds after the last iteration belong to the fixed part."""

    def seconds(generator: Generator, sampling: Sampling, number: int) -> NDArray[np.float64]:
        return np.array([short if sampling.diffusion_steps == timing._STEPS[0] else long, 2.0])

    monkeypatch.setattr(timing, "_iteration_seconds", seconds)
    measured = measure_times(small_generator, SCHEDULE, lambda done: None)
    assert measured.fixed == pytest.approx(fixed)
    assert measured.step == pytest.approx([step])
