"""Images generated without fresh noise."""

from __future__ import annotations

import numpy as np

from calibration.steps.error_model import batches
from calibration.steps.solvers import Solver
from calibration.steps.trajectories import TrajectoryInputs, TrajectorySampler
from runtime.generator import Generator
from runtime.sampling.plan import build_plan
from tests.helpers.distance import relative_l2
from tests.helpers.step_search import SCHEDULE


def test_the_images_are_those_of_the_generator(small_generator: Generator) -> None:
    """The same seeds, orders and noise, in several batches."""
    config, tokens = small_generator.manifest.model, []
    sampling = Solver("ddim").sampling(SCHEDULE, (4, 7, 3))
    sampler, plan, count = TrajectorySampler(small_generator.engines, config), build_plan(16, sampling), 10
    for numbers in batches(count):
        inputs = TrajectoryInputs.seeded(5, numbers, config, "random")
        generated = sampler.sample(plan, inputs).swapaxes(0, 1)  # [B, L, D]
        by_position = np.empty_like(generated)
        np.put_along_axis(by_position, inputs.order.T[..., None], generated, axis=1)
        tokens.append(by_position)
    assert len(tokens) > 1
    labels = [number % config.class_num for number in range(count)]
    expected = small_generator.generate(labels, seed=5, sampling=sampling).latents  # [B, D, 4, 4]: a token is a pixel
    found = np.concatenate(tokens).reshape(count, 4, 4, -1).transpose(0, 3, 1, 2)
    assert relative_l2(found, expected) < 1e-5
