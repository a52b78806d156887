"""The constraints that a model puts on sampling settings, and the checks of code that supports some models only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.checks import check_choice, truncate
from runtime.errors import RequestError
from runtime.model.config import ModelConfig
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, SAMPLERS, VQ
from runtime.sampling.settings import Sampling

_SAMPLERS = {"diffusion": DIFFUSION_SAMPLERS, "flow": FLOW_SAMPLERS, "vq": (VQ,)}
_FLOW_SAMPLING = Sampling(sampler="flow-2m", diffusion_steps=25)


def supported_samplers(model: ModelConfig) -> tuple[str, ...]:
    """Return the samplers that a model can use: those of its head, or the one that a distilled head was trained for."""
    return FLOW_SAMPLERS[:1] if model.distilled_steps else _SAMPLERS[model.head]


def default_sampling(model: ModelConfig) -> Sampling:
    """Return the sampling settings of a model that has no settings of its own: the published ones, where they apply."""
    return apply_constraints(model, _FLOW_SAMPLING if model.head == "flow" else Sampling(), {})


def fixed_settings(model: ModelConfig) -> dict[str, tuple[Any, str]]:
    """Return the settings that a model does not allow to change: the value of each, and the reason for messages."""
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
        "eta": 0.0,
    }
    return {name: (value, reason) for name, value in chain.items()}


def apply_constraints(model: ModelConfig, sampling: Sampling, explicit: Mapping[str, Any]) -> Sampling:
    """Return sampling settings with the values that the model fixes.

    Args:
        model: The config of the model.
        sampling: The settings.
        explicit: The settings that the caller chose, by name. They are not changed silently.

    Raises:
        RequestError: A chosen setting has another value than the model allows, or the sampler is not for its head.
    """
    fixed = fixed_settings(model)
    for name, (value, reason) in fixed.items():
        if explicit.get(name) not in (None, value, str(value)):  # the command line passes numbers of steps as text
            raise RequestError(
                f"{name} of this model must be {value}, found {truncate(explicit[name])}; leave it out: {reason}"
            )
    sampling = dataclasses.replace(sampling, **{name: value for name, (value, _) in fixed.items()})
    if sampling.sampler not in supported_samplers(model):
        check_choice("sampler", sampling.sampler, (*SAMPLERS, VQ))
        known = " or ".join(supported_samplers(model))
        raise RequestError(f"the sampler of a {model.head} head must be {known}, found {sampling.sampler!r}")
    return sampling


def short_chain_settings(model: ModelConfig, steps: int) -> dict[str, int]:
    """Return settings of a chain of few steps that amplifies errors little, for quick checks; none that are fixed."""
    chain = {"diffusion_steps": steps} | ({"start_timestep": 900} if model.head == "diffusion" else {})
    return {name: value for name, value in chain.items() if name not in fixed_settings(model)}


def check_masked_diffusion(model: ModelConfig, command: str) -> None:
    """Check that a model has bidirectional attention and a diffusion or flow head.

    Args:
        model: The config of the model.
        command: What needs such a model, for example `mar bench`.

    Raises:
        RequestError: The model has causal attention or a vq head.
    """
    if model.attention != "bidirectional":
        raise RequestError(f"{command} does not support models with {model.attention} attention; mar generate does")
    if model.head == "vq":
        raise RequestError(f"{command} does not support models with a {model.head} head; mar generate does")


def check_no_kv_cache(model: ModelConfig, loop: str) -> None:
    """Check that a model needs no cache of keys and values.

    Args:
        model: The config of the model.
        loop: The loop that has no such cache, for example `the loop on a GPU`.

    Raises:
        RequestError: The model has causal attention.
    """
    if model.attention == "causal":
        raise RequestError(
            f"{loop} has no cache for causal attention; generate on a CPU with --backend onnxruntime or openvino"
        )
