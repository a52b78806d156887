"""At which steps of a run something is due besides a training step."""

from __future__ import annotations

import math

_SAMPLED_SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75)  # few, because a grid takes as long as many steps
_FIRST_SAMPLES = 10  # steps; before them every sample is noise
_MEASUREMENTS = 50  # of the loss on held-out images
_BETWEEN_MEASUREMENTS = 10  # steps, at least


def samples_are_due(step: int, steps: int, every: int) -> bool:
    """Return whether sample images are made after `step` of `steps` steps.

    Args:
        step: The steps done, from 1.
        steps: The steps of the whole run.
        every: The steps between samples; 0 for samples at 2%, 5%, 10% and every quarter of the run.
    """
    if step == steps:
        return True
    if every:
        return step % every == 0
    return step >= _FIRST_SAMPLES and step in {math.ceil(share * steps) for share in _SAMPLED_SHARES}


def validation_is_due(step: int, steps: int) -> bool:
    """Return whether the loss on held-out images is measured after `step` of `steps` steps: fifty times in a run."""
    return step == steps or step % max(_BETWEEN_MEASUREMENTS, math.ceil(steps / _MEASUREMENTS)) == 0
