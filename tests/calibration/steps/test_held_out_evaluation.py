"""The comparison of sampling settings on held-out images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from calibration.steps.held_out_evaluation import EVAL_COUNT, evaluate_settings, image_count
from calibration.steps.solvers import Solver
from runtime.generator import Generator
from tests.helpers.step_search import SCHEDULE


def test_settings_are_compared_with_long_chains_in_the_same_iterations(small_generator: Generator) -> None:
    settings = {
        "few": Solver("ddim").sampling(SCHEDULE, 4),
        "many": Solver("dpm++2m").sampling(SCHEDULE, 300),
        "other": Solver("dpm++2m").sampling(dataclasses.replace(SCHEDULE, iterations=2), 300),
        "noisy": dataclasses.replace(SCHEDULE, diffusion_steps=5, start_timestep=900),
    }
    images = 0

    def advance(done: int) -> None:
        nonlocal images
        images += done

    few, many, other, noisy = evaluate_settings(small_generator, settings, advance)
    assert images == image_count(settings, 16) == EVAL_COUNT * (4 + 2)
    assert few.head_evaluations == 12
    assert few.relative_l2 is not None
    assert many.relative_l2 is not None
    assert other.relative_l2 is not None
    assert few.relative_l2 > 5 * max(many.relative_l2, other.relative_l2)
    assert few.sqnr_db == pytest.approx(-20 * np.log10(few.relative_l2))
    assert few.worst is not None
    assert few.worst > few.relative_l2
    assert noisy.relative_l2 is noisy.worst is None
    assert min(row.milliseconds for row in (few, many, other, noisy)) > 0
