"""The samplers of the head. Each is a table of coefficients with one row for each step of the chain.

The `denoise` engine applies one row, in the same way for every sampler:

    x0 = x0_from_x * x + x0_from_eps * eps, clamped to x0_low..x0_high
    x' = x_from_x * x + x_from_x0 * x0 + x_from_previous_x0 * x0 of the step before + noise_scale * sigma * noise
    log sigma^2 = log_variance_low + (log_variance_high - log_variance_low) * (v + 1) / 2

where eps and v are the two outputs of the head; eps of a flow head is a velocity (`runtime.sampling.flow_samplers`).
The bounds of x0 are infinite but for families that clamp it.
Coefficients are computed in float64 and rounded to float32 once.

The start of a chain matters as much as its sampler. With the cosine schedule, 1/sqrt(alpha_bar) is 20,000 at t = 999.
An error of eps in the first of 100 steps is therefore amplified 316 times, and in the first of 10 steps thousands of
times. DDPM with 100 steps or more covers this error with fresh noise. All other chains start at a lower timestep: DDPM
and DDIM with ten steps or more then amplify errors 1 to 6 times, and multistep solvers, which converge faster, 10 to 30
times.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.checks import check_choice, check_int, check_number, check_scale, truncate
from runtime.errors import RequestError
from runtime.model.coefficients import COEFFICIENTS, Columns, Float64, coefficient_rows, columns_with_fixed_noise
from runtime.sampling import flow_samplers as flow
from runtime.sampling.noise_schedule import (
    TRAIN_STEPS,
    NoiseSchedule,
    continuous_alphas_cumprod,
    respaced_timesteps,
    step_count,
    training_schedule,
)

VQ = "vq"
"""The sampler of a vq head, which samples one vector of the codebook and has no chain."""

_FULL_CHAIN = 100  # the least number of steps with which DDPM can start at t = 999
_START = {"ddpm": 950, "ddim": 980}  # the first timestep of shorter chains
# The time at which log(alpha / sigma) = -5.1, where multistep solvers start (eMIGM, arXiv 2503.07197).
_MULTISTEP_START = 995.1
_LARGEST_SLOPE = 0.75  # the slope of an extrapolation over a step that is 1.5 times as long as the one before it


@dataclasses.dataclass(frozen=True)
class CoefficientTable:
    """One diffusion chain, with one row for each step in the order of execution, from noisy to clean.

    Attributes:
        timesteps: The timesteps that the conditioning engine receives, float32 [T].
        coefficients: The columns of `runtime.model.coefficients.COEFFICIENTS`, float32 [T, 10].
        unguided: How many of the last steps have no guidance, in an iteration that has it.
        renorm: The least factor of renormalized guidance, see `runtime.loops.renormalized_guidance`; None without it.
    """

    timesteps: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    unguided: int = 0
    renorm: float | None = None

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.timesteps)


def coefficient_table(
    sampler: str,
    steps: int | str,
    temperature: float = 1.0,
    eta: float = 0.0,
    start: int | None = None,
) -> CoefficientTable:
    """Return the coefficients of a diffusion chain.

    Args:
        sampler: One of `SAMPLERS`, or `VQ`.
        steps: The number of steps; or `"ddimN"`, the published respacing by an integer stride, for ddpm and ddim.
        temperature: The factor on the noise of each step.
        eta: The share of noise that `ddim` and `flow-euler` add: 0 is none, 1 is as much as DDPM.
        start: The first timestep. None: 999 for `ddpm` with 100 steps or more, lower for the other samplers of a
            diffusion head, and 1000 for a flow, which has no other.

    Raises:
        RequestError: A value is wrong, or does not go with the sampler.
    """
    check_scale("temperature", temperature)
    if sampler == VQ:
        if (steps, eta, start) != (1, 0, None):
            raise RequestError(
                f"the sampler vq has one step, and no eta or start_timestep; found {truncate(steps)} "
                f"diffusion_steps, eta {truncate(eta)} and start_timestep {truncate(start)}"
            )
        return _vq_table(float(temperature))
    check_choice("sampler", sampler, SAMPLERS)
    check_number("eta", eta, 0, 1)
    if eta and sampler not in _WITH_ETA:
        raise RequestError(f"eta belongs to the samplers {' and '.join(_WITH_ETA)}, found eta {eta} with {sampler}")
    count = step_count(steps, least_steps(sampler))
    by_stride = isinstance(steps, str) and steps.startswith("ddim")
    if by_stride and sampler not in ("ddpm", "ddim"):
        raise RequestError(f"{steps!r} spaces the steps of ddpm and ddim; {sampler} needs their number")
    if start is not None:
        if sampler in FLOW_SAMPLERS:
            raise RequestError(
                f"start_timestep belongs to the samplers of a diffusion head, found {start} with {sampler}"
            )
        check_int("start_timestep", start, count - 1, TRAIN_STEPS - (2 if sampler in _MULTISTEP else 1))
        if by_stride:
            raise RequestError(f"start_timestep needs a number of diffusion steps, found {steps!r}, which has its own")
    return _table(sampler, steps if by_stride else count, float(temperature), float(eta), start)


def least_steps(sampler: str) -> int:
    """Return the least number of steps of a sampler: 1 for a flow, 2 for a diffusion chain."""
    return 1 if sampler in FLOW_SAMPLERS else 2


@functools.lru_cache(maxsize=256)
def _table(sampler: str, steps: int | str, temperature: float, eta: float, start: int | None) -> CoefficientTable:
    if sampler in FLOW_SAMPLERS:
        timesteps, rows = flow.FLOWS[sampler](flow.flow_times(int(steps)), temperature, eta)
    elif sampler in _MULTISTEP:
        # Evenly spread times, which may be fractions.
        timesteps = np.linspace(_MULTISTEP_START if start is None else start, 0, int(steps))
        rows = _COLUMNS[sampler](continuous_alphas_cumprod(timesteps), temperature, eta)
    else:
        kept = _table_timesteps(sampler, steps, start)
        timesteps = kept.astype(np.float64)
        rows = _COLUMNS[sampler](training_schedule().alphas_cumprod[kept], temperature, eta)
    return CoefficientTable(
        timesteps=np.ascontiguousarray(timesteps, dtype=np.float32),
        coefficients=coefficient_rows(rows),
    )


def _vq_table(temperature: float) -> CoefficientTable:
    """Return the only row of a vq head, which reads the temperature from `noise_scale`."""
    row = dict.fromkeys(COEFFICIENTS, np.zeros(1)) | {"noise_scale": np.full(1, temperature)}
    return CoefficientTable(np.zeros(1, np.float32), coefficient_rows(row))


def columns_through(sampler: str, timesteps: Float64, temperature: float = 1.0, eta: float = 0.0) -> Columns:
    """Return the coefficients of a chain through any timesteps, without the limits of a request.

    Args:
        sampler: One of `SAMPLERS`.
        timesteps: The timesteps, noisy to clean, float64 [T]. They may be fractions, of 0..998, for a flow of 0..1000.
        temperature: As in `coefficient_table`.
        eta: As in `coefficient_table`.

    Returns:
        The columns by name, float64 [T] each.
    """
    if sampler in FLOW_SAMPLERS:
        return flow.FLOWS[sampler](timesteps / TRAIN_STEPS, temperature, eta)[1]
    return _COLUMNS[sampler](continuous_alphas_cumprod(timesteps), temperature, eta)


def _table_timesteps(sampler: str, steps: int | str, start: int | None) -> NDArray[np.int64]:
    """Return the timesteps of ddpm and ddim, which are those of training, noisy to clean."""
    if sampler == "ddpm":
        usual = TRAIN_STEPS - 1 if step_count(steps) >= _FULL_CHAIN else _START["ddpm"]
    else:
        usual = max(_START["ddim"], step_count(steps) - 1)
    return respaced_timesteps(steps, usual if start is None else start)[::-1]


# Each takes alpha_bar at the timesteps of a chain, float64 [T], noisy to clean, the temperature and eta.


def _ddpm(alphas_cumprod: Float64, temperature: float, eta: float) -> Columns:
    """DDPM: ancestral sampling with the learned variance (arXiv 2102.09672, eq. 15), as published."""
    ascending = alphas_cumprod[::-1]
    schedule = NoiseSchedule.from_alphas_cumprod(np.arange(len(ascending)), ascending)
    columns = {
        "x0_from_x": np.sqrt(1 / schedule.alphas_cumprod),
        "x0_from_eps": -np.sqrt(1 / schedule.alphas_cumprod - 1),
        "x_from_x": schedule.posterior_mean_x,
        "x_from_x0": schedule.posterior_mean_x0,
        "x_from_previous_x0": np.zeros_like(schedule.betas),
        "noise_scale": np.append(0.0, np.full(len(ascending) - 1, temperature)),  # none at the last step
        "log_variance_low": schedule.posterior_log_variance,
        "log_variance_high": np.log(schedule.betas),
    }
    return {name: column[::-1] for name, column in columns.items()}


def _ddim(alphas_cumprod: Float64, temperature: float, eta: float) -> Columns:
    """DDIM (arXiv 2010.02502, eq. 12 and 16), whose variance is not the learned one."""
    signal, sigma, next_signal, next_sigma = _levels(alphas_cumprod)
    noise = eta * next_sigma / sigma * np.sqrt(1 - np.square(signal / next_signal))
    direction = np.sqrt(np.square(next_sigma) - np.square(noise)) / sigma
    return columns_with_fixed_noise(
        signal, sigma, direction, next_signal - direction * signal, np.zeros_like(signal), temperature * noise
    )


def _dpm_solver(alphas_cumprod: Float64, temperature: float, eta: float) -> Columns:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), whose first and last step are of first order."""
    signal, sigma, next_signal, next_sigma = _levels(alphas_cumprod)
    shrink = next_sigma / sigma
    gain = next_signal - shrink * signal  # alpha' (1 - e^-h)
    slope = _second_order(signal, sigma)
    return columns_with_fixed_noise(signal, sigma, shrink, gain * (1 + slope), -gain * slope, np.zeros_like(signal))


def _sde_dpm_solver(alphas_cumprod: Float64, temperature: float, eta: float) -> Columns:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095, section 6): DPM-Solver++(2M) with fresh noise in every step."""
    signal, sigma, next_signal, next_sigma = _levels(alphas_cumprod)
    decay = next_sigma * signal / (next_signal * sigma)  # e^-h
    gain = next_signal * (1 - np.square(decay))
    slope = _second_order(signal, sigma)
    noise = temperature * next_sigma * np.sqrt(1 - np.square(decay))
    return columns_with_fixed_noise(signal, sigma, next_sigma / sigma * decay, gain * (1 + slope), -gain * slope, noise)


_COLUMNS: dict[str, Callable[[Float64, float, float], Columns]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "dpm++2m": _dpm_solver,
    "dpm++2m-sde": _sde_dpm_solver,
}
DIFFUSION_SAMPLERS, FLOW_SAMPLERS = tuple(_COLUMNS), tuple(flow.FLOWS)
"""The samplers of a diffusion head, and those of a flow head."""

SAMPLERS = (*DIFFUSION_SAMPLERS, *FLOW_SAMPLERS)
"""All samplers that run a chain of steps."""

_MULTISTEP = ("dpm++2m", "dpm++2m-sde")
_WITH_ETA = ("ddim", "flow-euler")


def _levels(alphas_cumprod: Float64) -> tuple[Float64, Float64, Float64, Float64]:
    """Return signal and noise levels of every step, and of the step after it; after the last step there is no noise."""
    signal, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    return signal, sigma, np.append(signal[1:], 1.0), np.append(sigma[1:], 0.0)


def _second_order(signal: Float64, sigma: Float64) -> Float64:
    """Return 1 / (2 r) for every step, and 0 for the first and the last.

    r is the size of the step before divided by the size of this step, in log(alpha / sigma). The value is limited,
    because with few steps the one towards t = 0 is much longer than the step before it and would extrapolate too far.
    Without the limit, ten steps are worse than ten steps of DDIM.
    """
    step = np.diff(np.log(signal / sigma))  # [T - 1]
    return np.concatenate([[0.0], np.minimum(step[1:] / step[:-1] / 2, _LARGEST_SLOPE), [0.0]])
