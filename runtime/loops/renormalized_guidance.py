"""Renormalized guidance of NOVA: a guided prediction is made as small as the conditional one (arXiv 2412.14169).

In each guided step the prediction is multiplied by a factor for each image,

    f = clip(|conditional prediction| / |guided prediction|, renorm, 1)

where the norm is over all L positions of the image. As published, the noisy values themselves stand for the predictions
at positions that the iteration does not predict. So their noisy values take the same steps, and are forgotten with the
iteration.

`denoise` returns x0, which is linear in the prediction, and so is x' in x0. A call with both guidance halves and one
with the conditional half therefore tell everything, and the engine is the same as without this option.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.coefficients import COEFFICIENTS, Float64
from runtime.sampling.plan import Float
from runtime.sampling.samplers import CoefficientTable


@dataclasses.dataclass
class Others:
    """The positions that an iteration does not predict, while it denoises.

    Attributes:
        noise: Their noise, float32 [T + 1, L - K, B, D].
        x: Their noisy values, float32 [L - K, B, D].
        x0: Their clean values of the step before, float32 [L - K, B, D].
    """

    noise: Float
    x: Float
    x0: Float

    @classmethod
    def around(cls, noise: Float, start: int, stop: int) -> Others:
        """Return those around the positions `start` to `stop` - 1 of the noise [T + 1, L, B, D] of all positions."""
        around = np.concatenate([noise[:, :start], noise[:, stop:]], axis=1)
        return cls(around, around[0], np.zeros_like(around[0]))


def renormalized_step(
    table: CoefficientTable, step: int, x: Float, next_x: Float, guided: Float, conditional: Float, others: Others
) -> tuple[Float, Float]:
    """Apply the factors of a step to what `denoise` returned, and move the other positions one step on.

    Args:
        table: The coefficients of the chain, whose `renorm` is set.
        step: The number of the step.
        x: The noisy tokens before the step, float32 [N, D].
        next_x: The noisy tokens after the guided step, [N, D].
        guided: The clean tokens x0 of the guided step, [N, D].
        conditional: The clean tokens x0 of the conditional half, [N, D].
        others: The other positions.

    Returns:
        The noisy tokens after the step, and the clean ones, float32 [N, D] each.
    """
    row = dict(zip(COEFFICIENTS, table.coefficients[step].astype(np.float64), strict=True))
    batch, channels = others.x.shape[1:]
    kept = row["x0_from_x"] * x  # the part of x0 that does not depend on the prediction
    # The norms are those of predictions times x0_from_eps, whose square the other positions therefore have too.
    beside = row["x0_from_eps"] ** 2 * _squares(others.x)  # [B]
    norms = [np.sqrt(_squares((x0 - kept).reshape(-1, batch, channels)) + beside) for x0 in (conditional, guided)]
    factor = np.clip(norms[0] / norms[1], table.renorm, 1)[:, None]  # [B, 1]
    of_rows = np.tile(factor, (len(x) // batch, 1))  # [N, 1]
    x0 = kept + of_rows * (guided - kept)
    moved = next_x + row["x_from_x0"] * (x0 - guided)
    previous_x0, others.x0 = others.x0, ((row["x0_from_x"] + row["x0_from_eps"] * factor) * others.x).astype(np.float32)
    others.x = (
        row["x_from_x"] * others.x
        + row["x_from_x0"] * others.x0
        + row["x_from_previous_x0"] * previous_x0
        + row["noise_scale"] * others.noise[1 + step]
    ).astype(np.float32)
    return moved.astype(np.float32), x0.astype(np.float32)


def _squares(values: NDArray[Any]) -> Float64:
    """Return the sum of the squares of each image of values [rows, B, D], float64 [B]."""
    squares: Float64 = np.square(values, dtype=np.float64).sum(axis=(0, 2))
    return squares
