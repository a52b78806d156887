"""The time of an image."""

from __future__ import annotations

import numpy as np

from calibration.steps.timing import StepTimes, measure_times
from runtime.generator import Generator
from tests.helpers.step_search import SCHEDULE


def test_the_time_of_an_image_is_a_fixed_part_and_its_steps(small_generator: Generator) -> None:
    times = StepTimes(1.0, np.array([0.5, 0.25, 0.25]))
    assert times.seconds([2, 4, 4]) == 4.0
    assert times.uniform_steps([2, 4, 4]) == 3
    assert times.uniform_steps([2, 4, 5]) == 4  # at least as long
    assert times.uniform_steps([4, 4, 4]) == 4
    measured = measure_times(small_generator, SCHEDULE, lambda done: None)
    assert measured.step.shape == (3,)
    assert measured.fixed > 0
    assert (measured.step >= 0).all()
