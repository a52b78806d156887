"""How a plan of UVA is filled: `runtime.sampling.constraints.SamplingRules` for it.

A chunk of actions is one iteration. Its chain is MAR's, but x0 is clamped to -1..1 in every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.model.coefficients import BOUNDS, COEFFICIENTS
from runtime.model.uva_config import UvaConfig
from runtime.sampling.noise_schedule import TRAIN_STEPS
from runtime.sampling.plan import chain_table
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, CoefficientTable
from runtime.sampling.settings import Sampling

_LOW, _HIGH = -1.0, 1.0

# The chain of each preset that is faster than the published one.
_CHAINS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {"sampler": "ddim", "diffusion_steps": 25},
    "fast": {"sampler": "ddim", "diffusion_steps": 10},
    "turbo": {"sampler": "ddim", "diffusion_steps": 6},
    "instant": {"sampler": "ddim", "diffusion_steps": 6},
}


def supported_samplers(model: UvaConfig) -> tuple[str, ...]:
    """Return the samplers of a diffusion head."""
    return DIFFUSION_SAMPLERS


def own_sampling(model: UvaConfig) -> Sampling:
    """Return the published settings."""
    steps = model.act_diff_testing_steps
    return Sampling(diffusion_steps=int(steps) if steps.isdecimal() else steps, temperature=model.temperature)


def fixed_settings(model: UvaConfig) -> dict[str, tuple[Any, str]]:
    """Return the settings that cannot be changed."""
    return {
        "iterations": (1, "all actions of a chunk are predicted together"),
        "token_order": ("raster", "all actions of a chunk are predicted together"),
        "cfg_scale": (1.0, "actions are drawn without guidance"),
    }


def preset_settings(model: UvaConfig, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chain of a built-in preset; the rest is fixed."""
    return _CHAINS[name]


def short_chain(model: UvaConfig, steps: int) -> dict[str, int]:
    """Return settings of a chain of few steps that amplifies errors little."""
    return {"diffusion_steps": steps, "start_timestep": 900}


def edit_refusal(model: UvaConfig) -> str:
    """Return why a part of a chunk cannot be kept."""
    return "a UVA predicts all actions of a chunk together, so none of them can be kept"


def coefficients(model: UvaConfig, sampling: Sampling, steps: int | str) -> CoefficientTable:
    """Return the coefficients of a chain.

    A chain of DDPM begins at t = 999 however few steps it has, as published: the clamp keeps an error of eps small.

    Raises:
        RequestError: A setting has a wrong value.
    """
    by_number = not (isinstance(steps, str) and steps.startswith("ddim"))
    if sampling.sampler == "ddpm" and sampling.start_timestep is None and by_number:
        sampling = sampling.changed({"start_timestep": TRAIN_STEPS - 1})
    return _clamped(chain_table(sampling, steps))


def _clamped(table: CoefficientTable) -> CoefficientTable:
    """Return a chain whose predicted x0 is clamped in every step."""
    rows = table.coefficients.copy()
    rows[:, [COEFFICIENTS.index(name) for name in BOUNDS]] = _LOW, _HIGH
    return CoefficientTable(table.timesteps, rows, table.unguided)
