"""How a plan of MAR and its variants is filled: `runtime.sampling.constraints.SamplingRules` for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.model.config import ModelConfig
from runtime.sampling.plan import chain_table
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, VQ, CoefficientTable
from runtime.sampling.settings import Sampling

_SAMPLERS = {"diffusion": DIFFUSION_SAMPLERS, "flow": FLOW_SAMPLERS, "vq": (VQ,)}
_FLOW_SAMPLING = Sampling(sampler="flow-2m", diffusion_steps=25)

# The samplers and steps of a flow head in each preset: its paths are straighter, so fewer steps are enough.
_FLOW_CHAINS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {"sampler": "flow-2m", "diffusion_steps": 12},
    "fast": {"sampler": "flow-2m", "diffusion_steps": 8},
    "turbo": {"sampler": "flow-2m", "diffusion_steps": 6},
    "instant": {"sampler": "flow-2m", "diffusion_steps": 6},
}
_CHAIN = ("sampler", "diffusion_steps")  # the settings of the chain that a preset has


def supported_samplers(model: ModelConfig) -> tuple[str, ...]:
    """Return the samplers of the model's head, or the one that a distilled head was trained for."""
    return FLOW_SAMPLERS[:1] if model.distilled_steps else _SAMPLERS[model.head]


def own_sampling(model: ModelConfig) -> Sampling:
    """Return the published settings, where they apply."""
    return _FLOW_SAMPLING if model.head == "flow" else Sampling()


def fixed_settings(model: ModelConfig) -> dict[str, tuple[Any, str]]:
    """Return the settings that attention, order and head do not allow to change."""
    fixed: dict[str, tuple[Any, str]] = {}
    if model.attention == "causal":
        fixed["iterations"] = model.tokens, "causal attention generates one token in each iteration"
    if model.order == "raster":
        fixed["token_order"] = "raster", "the model was trained in this order only"
    if model.head == "vq":
        fixed |= _fixed_chain(model, 1, "a vq head chooses a vector of the codebook in one step")
        fixed["start_timestep"] = None, "a vq head has no timesteps"
    if model.distilled_steps:
        fixed |= _fixed_chain(model, model.distilled_steps, "the head was distilled to these steps")
        fixed["cfg_scale"] = 1.0, "guidance is already part of the distilled head"
    return fixed


def _fixed_chain(model: ModelConfig, steps: int, reason: str) -> dict[str, tuple[Any, str]]:
    """Return the fixed settings of a chain of `steps` steps, each with the reason."""
    chain = {
        "sampler": supported_samplers(model)[0],
        "diffusion_steps": steps,
        "last_diffusion_steps": None,
        "recap_diffusion_share": None,
        "eta": 0.0,
    }
    return {name: (value, reason) for name, value in chain.items()}


def preset_settings(model: ModelConfig, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a built-in preset, with a chain that suits the head of the model."""
    if model.head != "flow":
        return dict(settings)
    return {field: value for field, value in settings.items() if field not in _CHAIN} | _FLOW_CHAINS[name]


def short_chain(model: ModelConfig, steps: int) -> dict[str, int]:
    """Return settings of a chain of few steps that amplifies errors little."""
    return {"diffusion_steps": steps} | ({"start_timestep": 900} if model.head == "diffusion" else {})


def coefficients(model: ModelConfig, sampling: Sampling, steps: int | str) -> CoefficientTable:
    """Return the coefficients of a chain."""
    return chain_table(sampling, steps)


def edit_refusal(model: ModelConfig) -> str | None:
    """Return why the model cannot edit images; None if it can."""
    if model.order != "raster":
        return None
    return (
        "this model was trained to generate tokens in raster order only, so it cannot regenerate a part of an image; "
        "use a model trained with order random"
    )
