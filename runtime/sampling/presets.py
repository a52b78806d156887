"""Presets: named sampling settings, from the published ones to the fastest.

An artifact can have presets of its own, which `mar optimize-steps` finds for its model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from runtime.checks import check_choice, truncate
from runtime.errors import RequestError
from runtime.model.family_config import FamilyConfig
from runtime.sampling.constraints import apply_constraints, default_sampling, preset_settings
from runtime.sampling.settings import Sampling, plain_settings

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"iterations": 64},
    "balanced": {"iterations": 32, "sampler": "ddim", "diffusion_steps": 25},
    "fast": {"iterations": 14, "sampler": "ddim", "diffusion_steps": 14, "cfg_interval": (0.1, 1.0)},
    "turbo": {"iterations": 10, "sampler": "ddim", "diffusion_steps": 10, "cfg_interval": (0.15, 1.0)},
    "instant": {
        "iterations": 6,
        "sampler": "dpm++2m",
        "diffusion_steps": 6,
        "cfg_interval": (0.3, 1.0),
        "reuse_first_pass": True,
    },
}
"""The built-in presets of a diffusion head, slowest first: the settings that each has, by the name of the preset."""

OWN = "own"
"""The name of the artifact's own settings where presets are listed beside them; no preset can have it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")

# These settings belong to the model, as in the published constructor and scripts. No preset changes the first three.
# Only a preset with diffusion steps of its own changes the others.
_OF_THE_MODEL = ("cfg_scale", "low_res_cfg_scale", "temperature")
_CHAIN_OF_THE_MODEL = ("diffusion_steps", "start_timestep")


def check_preset_name(name: object) -> None:
    """Check the name of a preset of an artifact.

    Raises:
        RequestError: It has other characters than allowed, or is the name of a built-in preset.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"the name of a preset must have 1 to 40 letters, digits, '-', '_' and '.', found {truncate(name)}"
        )
    if name in (OWN, *PRESETS):
        raise RequestError(f"the names {', '.join((OWN, *PRESETS))} are taken, found {name!r}; choose another")


def resolve_sampling(
    own: Sampling,
    model: FamilyConfig,
    settings: Mapping[str, Any],
    presets: Mapping[str, Sampling] | None = None,
) -> Sampling:
    """Return the complete sampling settings of a request.

    The starting point is `own`, or complete settings, or a preset. Single settings then override it.

    A built-in preset keeps the model's own guidance scale and temperature. If it does not name diffusion steps, it
    keeps the model's own steps and their start too, unless those are one number for each iteration. Everything else
    is replaced. It never has more iterations than there are tokens, and its sampler suits the head of the model. A
    preset of the artifact replaces everything.

    Args:
        own: The artifact's own settings.
        model: The model that the settings are for.
        settings: The keys of `runtime.sampling.settings.SamplingRequest`. None stands for a missing key.
        presets: The artifact's own presets by name.

    Raises:
        RequestError: A name is unknown, or the model does not allow a setting.
    """
    overrides = dict(settings)
    preset, sampling = overrides.pop("preset", None), overrides.pop("sampling", None)
    overrides = plain_settings(overrides)
    if preset is not None and sampling is not None:
        raise RequestError(f"give either preset or sampling, found preset {truncate(preset)} and sampling")
    if sampling is not None:
        if not isinstance(sampling, Sampling):
            raise RequestError(f"sampling must be a runtime.Sampling, found {truncate(sampling)}")
        plain = plain_settings(vars(sampling))
        start = apply_constraints(model, Sampling(**plain), plain)
    elif preset is not None:
        start = _preset_sampling(own, model, preset, presets or {})
    else:
        start = own
    return apply_constraints(model, start.changed(overrides), overrides)


def _preset_sampling(own: Sampling, model: FamilyConfig, name: str, presets: Mapping[str, Sampling]) -> Sampling:
    """Return the settings of the preset `name`, built-in or one of `presets`, for an artifact whose own are `own`."""
    check_choice("preset", name, [*PRESETS, *presets])
    if name in presets:
        return presets[name]
    changes = preset_settings(model, name, PRESETS[name])
    per_iteration = isinstance(own.diffusion_steps, tuple)  # these steps belong to iterations that a preset changes
    fields = _OF_THE_MODEL + (() if "diffusion_steps" in changes or per_iteration else _CHAIN_OF_THE_MODEL)
    kept = {field: getattr(own, field) for field in fields}
    sampling = dataclasses.replace(default_sampling(model), **kept | changes)
    if sampling.iterations is None:
        return sampling
    return dataclasses.replace(sampling, iterations=min(sampling.iterations, model.tokens))
