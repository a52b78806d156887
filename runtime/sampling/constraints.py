"""The form of a model: what it can be drawn with, what it leaves no choice about, and who knows some forms only."""

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
    """Those that `model` can be drawn with; the one that its head was distilled for, if it was."""
    return FLOW_SAMPLERS[:1] if model.distilled_steps else _SAMPLERS[model.head]


def default_sampling(model: ModelConfig) -> Sampling:
    """How `model` is drawn with where nobody says: as published, or as its form wants it."""
    return apply_constraints(model, _FLOW_SAMPLING if model.head == "flow" else Sampling(), {})


def fixed_settings(model: ModelConfig) -> dict[str, tuple[Any, str]]:
    """The settings that a model of this form is always drawn with, each with the reason."""
    found: dict[str, tuple[Any, str]] = {}
    if model.attention == "causal":
        found["iterations"] = model.tokens, "under causal attention one token is drawn at a time"
    if model.order == "raster":
        found["token_order"] = "raster", "it was trained in that order alone"
    if model.head == "vq":
        found |= _chain_of(model, 1, "its head draws a code of a codebook, in one step")
        found["start_timestep"] = None, "its head has no timesteps"
    if model.distilled_steps:
        found |= _chain_of(model, model.distilled_steps, "its head was distilled to these steps")
        found["cfg_scale"] = 1.0, "guidance is part of what its head was distilled from"
    return found


def _chain_of(model: ModelConfig, steps: int, reason: str) -> dict[str, tuple[Any, str]]:
    """A chain that cannot be another."""
    chain = {
        "sampler": supported_samplers(model)[0],
        "diffusion_steps": steps,
        "last_diffusion_steps": None,
        "eta": 0.0,
    }
    return {name: (value, reason) for name, value in chain.items()}


def apply_constraints(model: ModelConfig, sampling: Sampling, named: Mapping[str, Any]) -> Sampling:
    """`sampling` as a model of this form can be drawn with.

    Raises `RequestError` where `named` settings cannot be, or the sampler is one of other heads.
    """
    fixed = fixed_settings(model)
    for name, (value, reason) in fixed.items():
        if named.get(name) not in (None, value, str(value)):  # the command line has numbers of steps as text
            found = truncate(named[name])
            raise RequestError(f"{name} of this model must be {value}, found {found}; leave it away: {reason}")
    sampling = dataclasses.replace(sampling, **{name: value for name, (value, _) in fixed.items()})
    if sampling.sampler not in supported_samplers(model):
        check_choice("sampler", sampling.sampler, (*SAMPLERS, VQ))
        known = " or ".join(supported_samplers(model))
        raise RequestError(f"a {model.head} head is drawn with the sampler {known}, found {sampling.sampler!r}")
    return sampling


def short_chain_settings(model: ModelConfig, steps: int) -> dict[str, int]:
    """Settings of a chain of few steps that amplifies no error much, where there is a choice."""
    chain = {"diffusion_steps": steps} | ({"start_timestep": 900} if model.head == "diffusion" else {})
    return {name: value for name, value in chain.items() if name not in fixed_settings(model)}


def check_masked_diffusion(model: ModelConfig, what: str) -> None:
    """Refuse a model without chains of steps over masked tokens, where `what` knows only these.

    `what` is such as "mar bench". Raises `RequestError`.
    """
    if model.attention != "bidirectional":
        raise RequestError(f"{what} does not know models with {model.attention} attention; mar generate draws with it")
    if model.head == "vq":
        raise RequestError(f"{what} does not know models with a head of {model.head}; mar generate draws with it")


def check_no_kv_cache(model: ModelConfig, what: str) -> None:
    """Refuse a model whose backbone carries a cache, for loops that do not. Raises `RequestError`."""
    if model.attention == "causal":
        raise RequestError(
            f"{what} does not carry the cache of causal attention; draw on a CPU: --backend onnxruntime or openvino"
        )
