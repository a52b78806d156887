"""How a plan of Hi-MAR is filled: `runtime.sampling.constraints.SamplingRules` for it, and its plan of two phases.

The chain of the full grid has the noise process of MAR, but a variance that is fixed: beta of the respaced step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.checks import check_choice
from runtime.errors import RequestError
from runtime.model.coefficients import COEFFICIENTS
from runtime.model.himar_config import HimarConfig
from runtime.sampling.plan import Iteration, Plan, build_plan, chain_table
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, CoefficientTable
from runtime.sampling.settings import LOW_RES_SETTINGS, Sampling

_STEPS, _LOW_RES_STEPS = 250, 100  # the published chains of the two grids

# The published settings by the width of the backbone: iterations of the full grid, and the guidance of both.
_PUBLISHED: dict[int, tuple[int, float, float]] = {768: (4, 2.5, 2.7), 1024: (4, 3.5, 3.5), 1280: (12, 3.2, 5.5)}

# The built-in presets. What a preset does not name is the model's own.
_PRESETS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {
        "sampler": "ddim",
        "diffusion_steps": 25,
        "low_res_iterations": 24,
        "low_res_sampler": "ddim",
        "low_res_diffusion_steps": 25,
    },
    "fast": {
        "sampler": "dpm++2m",
        "diffusion_steps": 12,
        "low_res_iterations": 14,
        "low_res_sampler": "ddim",
        "low_res_diffusion_steps": 14,
    },
    "turbo": {
        "iterations": 4,
        "sampler": "dpm++2m",
        "diffusion_steps": 8,
        "low_res_iterations": 10,
        "low_res_sampler": "ddim",
        "low_res_diffusion_steps": 10,
    },
}
_PRESETS["instant"] = _PRESETS["turbo"]  # there is nothing to reuse


def supported_samplers(model: HimarConfig) -> tuple[str, ...]:
    """Return the samplers of a diffusion head, which both heads are."""
    return DIFFUSION_SAMPLERS


def own_sampling(model: HimarConfig) -> Sampling:
    """Return the published settings: those of the published width; of another width 4 iterations without guidance."""
    iterations, scale, low_res_scale = _PUBLISHED.get(model.encoder_embed_dim, (4, 1.0, 1.0))
    return Sampling(
        iterations=min(iterations, model.tokens),
        cfg_scale=scale,
        low_res_cfg_scale=low_res_scale,
        diffusion_steps=_STEPS,
    )


def fixed_settings(model: HimarConfig) -> dict[str, tuple[Any, str]]:
    """Return none: every setting can be changed."""
    return {}


def preset_settings(model: HimarConfig, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a built-in preset, which shortens both phases."""
    kept = dict(_PRESETS[name])
    if "low_res_iterations" in kept:
        kept["low_res_iterations"] = min(kept["low_res_iterations"], model.small_tokens)
    return kept


def short_chain(model: HimarConfig, steps: int) -> dict[str, int]:
    """Return settings of few iterations and chains of few steps, which amplify errors little."""
    return {
        "diffusion_steps": steps,
        "low_res_diffusion_steps": steps,
        "low_res_iterations": min(4, model.small_tokens),
        "start_timestep": 900,
    }


def edit_refusal(model: HimarConfig) -> str:
    """Return why the model cannot edit images."""
    return (
        "a Hi-MAR draws a low-resolution grid of the whole image first, so it cannot regenerate a part of an image; "
        "use a MAR"
    )


def himar_plan(model: HimarConfig, sampling: Sampling, known: int) -> Plan:
    """Return the plan of an image: the iterations of the low-resolution grid, then those of the full one.

    Each iteration of the full grid has rows of noise of its own, because it draws all positions anew.

    Raises:
        RequestError: A setting has a wrong value, or the request is an edit.
    """
    if known:
        raise RequestError(edit_refusal(model))
    full = _of_one_grid(sampling)  # first, so that an error about the other grid is not of settings that both share
    big = build_plan(model.tokens, full, 0, lambda steps: coefficients(model, full, steps))
    small = _low_res_plan(model, sampling)
    planned, start = list[Iteration](small.iterations), 0
    for iteration in big.iterations:
        planned.append(dataclasses.replace(iteration, phase=1, noise_start=start))
        start += iteration.table.steps + 1
    return Plan((*small.lengths, *big.lengths), tuple(planned), sampling.token_order)


def _low_res_plan(model: HimarConfig, sampling: Sampling) -> Plan:
    """Return the plan of the low-resolution grid. Raises `RequestError`, which says that it is about this grid."""
    if sampling.low_res_sampler is not None:
        check_choice("low_res_sampler", sampling.low_res_sampler, supported_samplers(model))
    try:
        return build_plan(model.small_tokens, low_res_sampling(model, sampling))
    except RequestError as error:
        raise RequestError(f"the low-resolution grid, whose settings begin with low_res_: {error}") from None


def low_res_sampling(model: HimarConfig, sampling: Sampling) -> Sampling:
    """Return the settings of the low-resolution grid, with the published values where the settings have None."""
    iterations, scale = sampling.low_res_iterations, sampling.low_res_cfg_scale
    steps = sampling.low_res_diffusion_steps
    return dataclasses.replace(
        _of_one_grid(sampling),
        iterations=min(4 * model.cond_scale, model.small_tokens) if iterations is None else iterations,
        cfg_scale=sampling.cfg_scale if scale is None else scale,
        sampler=sampling.low_res_sampler or "ddpm",
        diffusion_steps=_LOW_RES_STEPS if steps is None else steps,
        last_diffusion_steps=None,
        eta=0.0,
    )


def _of_one_grid(sampling: Sampling) -> Sampling:
    """Return settings without those of the low-resolution grid."""
    none: dict[str, Any] = dict.fromkeys(LOW_RES_SETTINGS)
    return dataclasses.replace(sampling, **none)


def coefficients(model: HimarConfig, sampling: Sampling, steps: int | str) -> CoefficientTable:
    """Return the coefficients of a chain of the full grid."""
    return fixed_variance(chain_table(sampling, steps))


def fixed_variance(table: CoefficientTable) -> CoefficientTable:
    """Return a chain whose variance is the larger choice, beta, in place of a learned one (arXiv 2006.11239, 3.2)."""
    noise, low, high = map(COEFFICIENTS.index, ("noise_scale", "log_variance_low", "log_variance_high"))
    rows = table.coefficients.astype(np.float64)
    rows[:, noise] *= np.exp(0.5 * rows[:, high])
    rows[:, [low, high]] = 0
    return dataclasses.replace(table, coefficients=rows.astype(np.float32))
