"""The diffusion process of the head as tables: its noise schedule, its respacing, its samplers.

A sampler is one row of coefficients a step (`CoefficientTable`). The `denoise` engine applies a row:

    x0 = x0_from_x * x + x0_from_eps * eps
    x' = x_from_x * x + x_from_x0 * x0 + x_from_previous_x0 * x0 of the step before + noise_scale * sigma * noise
    log sigma^2 = log_variance_low + (log_variance_high - log_variance_low) * (v + 1) / 2

where eps and v are the head's two outputs. Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from runtime.errors import RequestError

TRAIN_STEPS = 1000

# The columns of a coefficient row, in the order the `denoise` engine reads them.
COEFFICIENTS = (
    "x0_from_x",
    "x0_from_eps",
    "x_from_x",
    "x_from_x0",
    "x_from_previous_x0",
    "noise_scale",
    "log_variance_low",
    "log_variance_high",
)

SAMPLERS = ("ddpm",)
_LARGEST_SCALE = 1000


def cosine_betas() -> NDArray[np.float64]:
    """The cosine schedule of Improved DDPM (arXiv 2102.09672, eq. 17), 1000 betas capped at 0.999."""
    edges = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
    alpha_bar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: NDArray[np.float64] = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return betas


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """A discrete diffusion process q (arXiv 2006.11239), every array float64 [T] in ascending time."""

    timesteps: NDArray[np.float64]  # what the network is told
    betas: NDArray[np.float64]
    alphas_cumprod: NDArray[np.float64]
    posterior_mean_x0: NDArray[np.float64]  # factors of x0 and x_t in the mean of q(x_{t-1} | x_t, x0), eq. 7
    posterior_mean_x: NDArray[np.float64]
    posterior_log_variance: NDArray[np.float64]  # its first entry, -inf, replaced by the second

    @classmethod
    def from_alphas_cumprod(cls, timesteps: NDArray[np.int64], alphas_cumprod: NDArray[np.float64]) -> NoiseSchedule:
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
    """The full process of 1000 steps that the head is trained on."""
    alphas_cumprod = np.cumprod(1 - cosine_betas(), dtype=np.float64)
    return NoiseSchedule.from_alphas_cumprod(np.arange(TRAIN_STEPS), alphas_cumprod)


def respaced_timesteps(steps: int | str) -> NDArray[np.int64]:
    """The timesteps kept by the published respacing, ascending: int64 [T].

    An integer n gives n steps evenly spread from 0 to 999; `"ddimN"` gives the N steps of an integer
    stride from 0 (arXiv 2010.02502). Raises `RequestError` when there is no such stride.
    """
    by_stride = isinstance(steps, str) and steps.startswith("ddim")
    try:
        count = int(str(steps).removeprefix("ddim"))
    except ValueError:
        raise RequestError(f"diffusion_steps must be a whole number or 'ddimN', found {_short(steps)}") from None
    if not 2 <= count <= TRAIN_STEPS:
        raise RequestError(f"diffusion_steps must lie in 2..{TRAIN_STEPS}, found {_short(steps)}")
    if by_stride:
        for stride in range(1, TRAIN_STEPS):
            kept = np.arange(0, TRAIN_STEPS, stride)
            if len(kept) == count:
                return kept
        raise RequestError(f"diffusion_steps {steps!r}: no integer stride over {TRAIN_STEPS} gives {count} steps")
    spacing, position, evenly = (TRAIN_STEPS - 1) / (count - 1), 0.0, []
    for _ in range(count):  # accumulated as the published code does: the rounding of ties depends on it
        evenly.append(round(position))
        position += spacing
    return np.array(evenly, dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class CoefficientTable:
    """One diffusion chain, a row a step in the order of execution (noisy to clean)."""

    timesteps: NDArray[np.float32]  # [T], what the conditioning engine is told
    coefficients: NDArray[np.float32]  # [T, len(COEFFICIENTS)]

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def check_scale(name: str, value: float) -> None:
    """Refuse what is no sensible factor: not a number, negative, or beyond a thousand."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= _LARGEST_SCALE:
        raise RequestError(f"{name} must be a number in 0..{_LARGEST_SCALE}, found {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def coefficient_table(sampler: str, steps: int | str, temperature: float) -> CoefficientTable:
    """The rows of `sampler` over the published respacing; `temperature` scales the noise of each step."""
    if sampler not in SAMPLERS:
        raise RequestError(f"sampler must be one of {', '.join(SAMPLERS)}, found {sampler!r}")
    check_scale("temperature", temperature)
    kept = respaced_timesteps(steps)
    schedule = NoiseSchedule.from_alphas_cumprod(kept, training_schedule().alphas_cumprod[kept])
    rows = _ddpm_rows(schedule, temperature)
    return CoefficientTable(
        timesteps=np.ascontiguousarray(schedule.timesteps[::-1], dtype=np.float32),
        coefficients=np.ascontiguousarray(rows[::-1], dtype=np.float32),
    )


def _ddpm_rows(schedule: NoiseSchedule, temperature: float) -> NDArray[np.float64]:
    """Ancestral sampling with the learned variance (arXiv 2102.09672, eq. 15), ascending: [T, 8]."""
    columns = {
        "x0_from_x": np.sqrt(1 / schedule.alphas_cumprod),
        "x0_from_eps": -np.sqrt(1 / schedule.alphas_cumprod - 1),
        "x_from_x": schedule.posterior_mean_x,
        "x_from_x0": schedule.posterior_mean_x0,
        "x_from_previous_x0": np.zeros_like(schedule.betas),
        "noise_scale": np.append(0.0, np.full(len(schedule.betas) - 1, temperature)),  # none at the last step
        "log_variance_low": schedule.posterior_log_variance,
        "log_variance_high": np.log(schedule.betas),
    }
    return np.stack([columns[name] for name in COEFFICIENTS], axis=1)
