"""How far the outputs of an engine, or the latents of an image, are from reference values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.latents import patchify
from runtime.sampling.plan import Plan


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the relative L2 distance |found - expected| / |expected| of two arrays of the same shape.

    Both are converted to float64 first. The distance is infinite if any value is not finite.
    """
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    distance = float(difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))
    return distance if np.isfinite(distance) else float("inf")


def sqnr_db(distance: float) -> float:
    """Return the signal-to-quantization-noise ratio (SQNR) of a relative L2 distance, in dB: larger is better.

    A distance of 1 is 0 dB, and each factor of ten less adds 20 dB. A distance below 1e-15 counts as 1e-15: 300 dB.
    """
    return -20 * math.log10(max(distance, 1e-15))


def distance_report(distance: float) -> dict[str, float]:
    """Return a relative L2 distance as a manifest stores it: `relative_l2`, and the same as `sqnr_db`."""
    return {"relative_l2": distance, "sqnr_db": sqnr_db(distance)}


def tolerance_text(tolerance: float) -> str:
    """Return a tolerance for people, with one decimal where it has any: `1e-05`, `2.1e-05`."""
    return f"{tolerance:.1e}".replace(".0e", "e")


def drift(
    found: NDArray[Any], expected: NDArray[Any], order: NDArray[np.int64], plan: Plan, patch_size: int, every: int = 1
) -> list[dict[str, Any]]:
    """Return how the distance of two sets of latents grows over the iterations of the plan that generated them.

    A token never changes after its iteration, so the tokens of each iteration show the error up to that iteration.

    Args:
        found: Latents [B, C, h, w], those of the image.
        expected: The latents [B, C, h, w] to compare with.
        order: Generation order [B, L]: token positions, first generated first; of several grids that of all.
        plan: The plan that generated both.
        patch_size: The side of a token in latent values.
        every: The number of consecutive iterations whose tokens are compared together.

    Returns:
        One entry for each group of iterations: the number of its last `iteration`, `relative_l2` and `sqnr_db`.
    """
    before = sum(plan.lengths[:-1])
    order = order[:, before:, None] - before
    found, expected = (
        np.take_along_axis(patchify(latents, patch_size), order, axis=1) for latents in (found, expected)
    )  # [B, L, D], in generation order
    entries, iterations = [], plan.phase(len(plan.lengths) - 1)
    for start in range(0, len(iterations), every):
        group = iterations[start : start + every]
        tokens = slice(group[0].known, group[-1].known + group[-1].count)
        distance = relative_l2(found[:, tokens], expected[:, tokens])
        entries.append({"iteration": start + len(group), **distance_report(distance)})
    return entries
