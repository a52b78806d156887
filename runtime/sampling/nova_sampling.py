"""How a plan of NOVA is filled: `runtime.sampling.constraints.SamplingRules` for it.

Noise levels and timesteps are those of the model's scheduler (`runtime.model.nova_config.NovaScheduler`), so that a
chain is the published one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.checks import check_number, check_scale, truncate
from runtime.errors import RequestError
from runtime.model.coefficients import Columns, Float64, coefficient_rows
from runtime.model.nova_config import FLOW, NovaConfig, NovaScheduler
from runtime.sampling.flow_samplers import FLOWS
from runtime.sampling.noise_schedule import TRAIN_STEPS, step_count
from runtime.sampling.samplers import FLOW_SAMPLERS, CoefficientTable, least_steps
from runtime.sampling.settings import Sampling

_LEAST_VARIANCE = 1e-20  # of DDPM, as published

# The steps of each preset that is faster than the published settings.
_STEPS = {"exact": 25, "balanced": 16, "fast": 10, "turbo": 6, "instant": 6}


def supported_samplers(model: NovaConfig) -> tuple[str, ...]:
    """Return the samplers of a flow, or the published one of DDPM."""
    return FLOW_SAMPLERS if model.scheduler.kind == FLOW else ("ddpm",)


def own_sampling(model: NovaConfig) -> Sampling:
    """Return the published settings: 64 iterations, 25 steps, guidance 5."""
    return Sampling(
        mask_schedule="cosine-rounded",
        cfg_scale=5.0,
        cfg_schedule="constant",
        sampler=supported_samplers(model)[0],
        diffusion_steps=25,
    )


def fixed_settings(model: NovaConfig) -> dict[str, tuple[Any, str]]:
    """Return the settings that cannot be changed."""
    fixed: dict[str, tuple[Any, str]] = {"start_timestep": (None, "the scheduler of the model has its own")}
    if model.scheduler.kind != FLOW:
        fixed["flow_shift"] = None, "the scheduler of the model is no flow"
    return fixed


def preset_settings(model: NovaConfig, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the iterations and the guidance of a built-in preset, with fewer steps of the model's own sampler."""
    kept = {field: value for field, value in settings.items() if field not in ("sampler", "diffusion_steps")}
    return kept | {"diffusion_steps": _STEPS[name]}


def short_chain(model: NovaConfig, steps: int) -> dict[str, int]:
    """Return settings of a chain of few steps."""
    return {"diffusion_steps": steps}


def edit_refusal(model: NovaConfig) -> None:
    """Return None: tokens are generated in any order, so a part of an image can be regenerated."""


def coefficients(model: NovaConfig, sampling: Sampling, steps: int | str) -> CoefficientTable:
    """Return the coefficients of a chain.

    Raises:
        RequestError: A setting has a wrong value.
    """
    check_scale("temperature", sampling.temperature)
    check_number("eta", sampling.eta, 0, 1)
    if sampling.cfg_scale < 1:
        raise RequestError(f"cfg_scale of a NOVA must be at least 1, found {truncate(sampling.cfg_scale)}")
    if isinstance(steps, str) and steps.startswith("ddim"):
        raise RequestError(f"diffusion_steps of a NOVA must be a whole number, found {truncate(steps)}")
    if sampling.eta and sampling.sampler != FLOW_SAMPLERS[0]:
        raise RequestError(
            f"eta belongs to the sampler {FLOW_SAMPLERS[0]}, found eta {sampling.eta} with {sampling.sampler}"
        )
    if sampling.flow_shift is not None:
        check_number("flow_shift", sampling.flow_shift, 0.01, 100)
    if sampling.cfg_truncation is not None:
        check_number("cfg_truncation", sampling.cfg_truncation, 0, TRAIN_STEPS)
    if sampling.cfg_renorm is not None:
        check_number("cfg_renorm", sampling.cfg_renorm, 0, 1)
    return _table(
        model.scheduler,
        sampling.sampler,
        step_count(steps, least_steps(sampling.sampler)),
        float(sampling.temperature),
        float(sampling.eta),
        sampling.flow_shift,
        sampling.cfg_truncation,
        sampling.cfg_renorm,
    )


@functools.lru_cache(maxsize=256)
def _table(
    scheduler: NovaScheduler,
    sampler: str,
    steps: int,
    temperature: float,
    eta: float,
    shift: float | None,
    truncation: float | None,
    renorm: float | None,
) -> CoefficientTable:
    if scheduler.kind == FLOW:
        timesteps, columns = FLOWS[sampler](flow_times(scheduler, steps, shift), temperature, eta)
    else:
        timesteps, columns = _ddpm(scheduler, steps, temperature)
    return CoefficientTable(
        timesteps=np.ascontiguousarray(timesteps, dtype=np.float32),
        coefficients=coefficient_rows(columns),
        unguided=0 if truncation is None else int((timesteps < truncation).sum()),
        renorm=renorm,
    )


def flow_times(scheduler: NovaScheduler, steps: int, shift: float | None = None) -> Float64:
    """Return the noise level of every step of a flow, from 1 downwards: float64 [T] of float32 values.

    They are even from 1 to the least level of the training process, and then shifted. That level is shifted too, by the
    shift of the model, so that it is shifted twice, as published.

    Args:
        scheduler: The scheduler of the model.
        steps: T, the number of steps.
        shift: The shift of the request. None: that of the model.
    """
    least = shifted(np.float64(1 / TRAIN_STEPS), scheduler.shift)
    base = (np.linspace(TRAIN_STEPS, TRAIN_STEPS * least, steps) / TRAIN_STEPS).astype(np.float32)
    times: Float64 = shifted(base.astype(np.float64), shift or scheduler.shift).astype(np.float32).astype(np.float64)
    return times


def shifted(level: Any, shift: float) -> Any:
    """Return noise levels moved towards 1 by a shift above 1 (arXiv 2403.03206, equation 23)."""
    return shift * level / (1 + (shift - 1) * level)


def alphas_cumprod(scheduler: NovaScheduler) -> Float64:
    """Return alpha_bar of the 1000 timesteps of DDPM: float64 [1000] of values in float32, as published."""
    first, last = scheduler.beta_start, scheduler.beta_end
    if scheduler.beta_schedule == "linear":
        betas = np.linspace(first, last, TRAIN_STEPS)
    elif scheduler.beta_schedule == "scaled_linear":
        betas = np.square(np.linspace(np.sqrt(first), np.sqrt(last), TRAIN_STEPS))
    else:
        edges = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
        share = np.square(np.cos((edges + 0.008) / 1.008 * np.pi / 2))
        betas = np.minimum(1 - share[1:] / share[:-1], 0.999)
    alphas = np.float32(1) - betas.astype(np.float32)
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32).astype(np.float64)


def _ddpm(scheduler: NovaScheduler, steps: int, temperature: float) -> tuple[Float64, Columns]:
    """Return timesteps and coefficients of DDPM (arXiv 2006.11239, equation 7) with a fixed variance."""
    stride = TRAIN_STEPS // steps
    if scheduler.timestep_spacing == "leading":
        timesteps = np.arange(steps)[::-1] * stride + scheduler.steps_offset
    else:
        timesteps = np.round(np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps)).astype(np.int64)[:steps] - 1
    levels, before = alphas_cumprod(scheduler), timesteps - stride
    now, after = levels[timesteps], np.where(before < 0, 1.0, levels[np.maximum(before, 0)])
    alpha = now / after
    beta = 1 - alpha
    posterior = np.maximum((1 - after) / (1 - now) * beta, _LEAST_VARIANCE)
    variance = posterior if scheduler.variance_type == "fixed_small" else beta
    x0_from_x, x0_from_output = {
        "epsilon": (1 / np.sqrt(now), -np.sqrt(1 - now) / np.sqrt(now)),
        "v_prediction": (np.sqrt(now), -np.sqrt(1 - now)),
    }[scheduler.prediction_type]
    zeros = np.zeros(steps)
    return timesteps.astype(np.float64), {
        "x0_from_x": x0_from_x,
        "x0_from_eps": x0_from_output,
        "x_from_x": np.sqrt(alpha) * (1 - after) / (1 - now),
        "x_from_x0": np.sqrt(after) * beta / (1 - now),
        "x_from_previous_x0": zeros,
        "noise_scale": np.where(timesteps > 0, temperature * np.sqrt(variance), 0.0),
        "log_variance_low": zeros,
        "log_variance_high": zeros,
    }
