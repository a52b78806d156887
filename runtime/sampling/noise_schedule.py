"""The noise schedule of the diffusion process that the head is trained on, and its respacing, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import RequestError

TRAIN_STEPS = 1000
"""The number of timesteps of the training process, 0 to 999."""


def cosine_betas() -> NDArray[np.float64]:
    """Return the cosine schedule of Improved DDPM (arXiv 2102.09672, eq. 17): 1000 betas, at most 0.999."""
    edges = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
    alpha_bar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: NDArray[np.float64] = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return betas


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """A discrete diffusion process q (arXiv 2006.11239). All arrays are float64 [T], from clean to noisy.

    Attributes:
        timesteps: The timesteps that the network receives.
        betas: The variance of the noise that each step adds.
        alphas_cumprod: alpha_bar, the product of 1 - beta up to each step.
        posterior_mean_x0: The factor of x0 in the mean of q(x_{t-1} | x_t, x0), eq. 7.
        posterior_mean_x: The factor of x_t in it.
        posterior_log_variance: The logarithm of its variance. The first entry, -inf, is replaced by the second.
    """

    timesteps: NDArray[np.float64]
    betas: NDArray[np.float64]
    alphas_cumprod: NDArray[np.float64]
    posterior_mean_x0: NDArray[np.float64]
    posterior_mean_x: NDArray[np.float64]
    posterior_log_variance: NDArray[np.float64]

    @classmethod
    def from_alphas_cumprod(cls, timesteps: NDArray[np.int64], alphas_cumprod: NDArray[np.float64]) -> NoiseSchedule:
        """Return the process that visits only these timesteps, ascending [T], with their alpha_bar [T]."""
        before = np.append(1.0, alphas_cumprod[:-1])  # [T]
        betas = 1 - alphas_cumprod / before
        variance = betas * (1 - before) / (1 - alphas_cumprod)
        return cls(
            timesteps=timesteps.astype(np.float64),
            betas=betas,
            alphas_cumprod=alphas_cumprod,
            posterior_mean_x0=betas * np.sqrt(before) / (1 - alphas_cumprod),
            posterior_mean_x=(1 - before) * np.sqrt(1 - betas) / (1 - alphas_cumprod),
            posterior_log_variance=np.log(np.append(variance[1], variance[1:])),
        )


def training_schedule() -> NoiseSchedule:
    """Return the complete process of 1000 timesteps that the head is trained on."""
    alphas_cumprod = np.cumprod(1 - cosine_betas(), dtype=np.float64)
    return NoiseSchedule.from_alphas_cumprod(np.arange(TRAIN_STEPS), alphas_cumprod)


def continuous_alphas_cumprod(timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return alpha_bar of the cosine schedule at times in 0..998, which may be fractions.

    At integer timesteps it equals the table of `training_schedule`.
    """

    def curve(edge: NDArray[np.float64] | float) -> NDArray[np.float64]:
        squared: NDArray[np.float64] = np.cos((edge / TRAIN_STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
        return squared

    return curve(timesteps + 1) / curve(0.0)


def continuous_timestep(alpha_cumprod: float) -> float:
    """Return the time at which alpha_bar has this value; the inverse of `continuous_alphas_cumprod`."""
    first = np.cos(0.008 / 1.008 * np.pi / 2)
    angle = np.arccos(np.sqrt(alpha_cumprod) * first)
    return float((angle * 2 / np.pi * 1.008 - 0.008) * TRAIN_STEPS - 1)


def step_count(steps: int | str, least: int = 2) -> int:
    """Return the number of steps that a value of `diffusion_steps` stands for.

    Args:
        steps: A number, also as text, or `"ddimN"`.
        least: The least number that is allowed.

    Raises:
        RequestError: The value is neither, or not in `least`..1000.
    """
    digits = str(steps).removeprefix("ddim")
    try:
        count = int(digits) if digits.isdecimal() else None
    except ValueError:  # more digits than Python converts
        count = None
    if count is None:
        raise RequestError(f"diffusion_steps must be a whole number or 'ddimN', found {truncate(steps)}")
    if not least <= count <= TRAIN_STEPS:
        raise RequestError(f"diffusion_steps must lie in {least}..{TRAIN_STEPS}, found {truncate(steps)}")
    return count


def respaced_timesteps(steps: int | str, start: int = TRAIN_STEPS - 1) -> NDArray[np.int64]:
    """Return the timesteps of a chain as the published code chooses them, ascending: int64 [T].

    Args:
        steps: A number of steps, spread evenly from 0 to `start`; or `"ddimN"`, the N steps of an integer stride from
            0 (arXiv 2010.02502), which does not use `start`.
        start: The highest timestep; the published code has 999.

    Raises:
        RequestError: No integer stride gives N steps.
    """
    count = step_count(steps)
    if isinstance(steps, str) and steps.startswith("ddim"):
        for stride in range(1, TRAIN_STEPS):
            kept = np.arange(0, TRAIN_STEPS, stride)
            if len(kept) == count:
                return kept
        raise RequestError(f"diffusion_steps {steps!r}: no integer stride over {TRAIN_STEPS} gives {count} steps")
    spacing, position, evenly = start / (count - 1), 0.0, []
    for _ in range(count):  # summed up as in the published code, because the rounding of ties depends on it
        evenly.append(round(position))
        position += spacing
    return np.array(evenly, dtype=np.int64)
