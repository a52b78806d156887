"""The form of a model: what it leaves no choice about when drawing, and what knows the published form alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.checks import short
from runtime.config import ModelConfig
from runtime.errors import RequestError
from runtime.plan import Sampling
from runtime.samplers import CODES

_CHAIN_OF_CODES = {
    "sampler": CODES,
    "diffusion_steps": 1,
    "last_diffusion_steps": None,
    "start_timestep": None,
    "eta": 0.0,
}


def settled(config: ModelConfig) -> dict[str, tuple[Any, str]]:
    """The settings that a model of this form is always drawn with, each with the reason."""
    found: dict[str, tuple[Any, str]] = {}
    if config.attention == "causal":
        found["iterations"] = config.tokens, "under causal attention one token is drawn at a time"
    if config.order == "raster":
        found["token_order"] = "raster", "it was trained in that order alone"
    if config.head == "codes":
        reason = "its head draws a code of a codebook, in one step"
        found |= {name: (value, reason) for name, value in _CHAIN_OF_CODES.items()}
    return found


def formed(config: ModelConfig, sampling: Sampling, named: Mapping[str, Any]) -> Sampling:
    """`sampling` as a model of this form can be drawn with. Raises `RequestError` where `named` settings cannot."""
    fixed = settled(config)
    for name, (value, reason) in fixed.items():
        if named.get(name) not in (None, value, str(value)):  # the command line has numbers of steps as text
            found = short(named[name])
            raise RequestError(f"{name} of this model must be {value}, found {found}; leave it away: {reason}")
    if sampling.sampler == CODES and config.head != "codes":
        raise RequestError(f"the sampler {CODES} is for heads of codes, this model has a head of {config.head}")
    return dataclasses.replace(sampling, **{name: value for name, (value, _) in fixed.items()})


def check_published(config: ModelConfig, what: str) -> None:
    """Refuse a model that `what`, such as "mar bench", does not know the form of. Raises `RequestError`."""
    if config.attention != "bidirectional":
        raise RequestError(f"{what} does not know models with {config.attention} attention; mar generate draws with it")
    if config.head != "diffusion":
        raise RequestError(f"{what} does not know models with a head of {config.head}; mar generate draws with it")


def check_no_cache(config: ModelConfig, what: str) -> None:
    """Refuse a model whose backbone carries a cache, for loops that do not. Raises `RequestError`."""
    if config.attention == "causal":
        raise RequestError(
            f"{what} does not carry the cache of causal attention; draw with --backend onnxruntime --device cpu"
        )
