"""Samples and losses on held-out images are made at these steps of a run."""

from __future__ import annotations

import pytest

from training.loop.schedule import samples_are_due, validation_is_due


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (1000, 0, [20, 50, 100, 250, 500, 750, 1000]),
        (300, 0, [15, 30, 75, 150, 225, 300]),
        (8, 0, [8]),
        (7, 3, [3, 6, 7]),
    ],
)
def test_samples_come_by_two_percent_of_a_run_and_later_every_quarter(
    steps: int, every: int, expected: list[int]
) -> None:
    assert [step for step in range(1, steps + 1) if samples_are_due(step, steps, every)] == expected


@pytest.mark.parametrize(("steps", "expected"), [(8, [8]), (25, [10, 20, 25]), (1000, list(range(20, 1001, 20)))])
def test_the_loss_on_held_out_images_is_measured_fifty_times(steps: int, expected: list[int]) -> None:
    assert [step for step in range(1, steps + 1) if validation_is_due(step, steps)] == expected
