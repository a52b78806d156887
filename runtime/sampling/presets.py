"""Named ways to draw, from the published one to the fastest: each a choice of sampling settings.

What each costs and keeps is measured in docs/numbers.md. An artifact may have presets of its own, made for
its model by `mar calibrate --steps`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from runtime.checks import check_choice, truncate
from runtime.errors import RequestError
from runtime.model.config import ModelConfig
from runtime.sampling.constraints import apply_constraints, default_sampling
from runtime.sampling.settings import Sampling

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"iterations": 64},
    "balanced": {"iterations": 32, "sampler": "ddim", "diffusion_steps": 25},
    "fast": {"iterations": 14, "sampler": "ddim", "diffusion_steps": 14, "cfg_interval": (0.1, 1.0)},
    "turbo": {"iterations": 10, "sampler": "ddim", "diffusion_steps": 10, "cfg_interval": (0.15, 1.0)},
}
# The same for a flow head: fewer steps go as far along a straighter path.
_FLOW_CHAINS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {"sampler": "flow-2m", "diffusion_steps": 12},
    "fast": {"sampler": "flow-2m", "diffusion_steps": 8},
    "turbo": {"sampler": "flow-2m", "diffusion_steps": 6},
}

OWN = "own"  # what the artifact's own settings are called where presets are named beside them
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")

# What belongs to a model rather than to a way of drawing with it, as in the published constructor and
# scripts: no preset changes the first two, and the others only one that names its own diffusion steps.
_OF_THE_MODEL = ("cfg_scale", "temperature")
_CHAIN_OF_THE_MODEL = ("diffusion_steps", "start_timestep")
_CHAIN = ("sampler", "diffusion_steps")  # what a preset says of it


def check_preset_name(name: object) -> None:
    """Refuse what cannot be the name of an artifact's own preset. Raises `RequestError`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"the name of a preset must be of 1 to 40 letters, digits, '-', '_' and '.', found {truncate(name)}"
        )
    if name in (OWN, *PRESETS):
        raise RequestError(f"the names {', '.join((OWN, *PRESETS))} are taken, found {name!r}; choose another")


def resolve_sampling(
    own: Sampling, model: ModelConfig, settings: Mapping[str, Any], presets: Mapping[str, Sampling] | None = None
) -> Sampling:
    """The settings of a request for images of `model`: `own`, then a preset, then what is named.

    `settings` are fields of `Sampling`, and `preset`, one of `PRESETS` or of the artifact's own
    `presets`; None stands for what is there already. A preset of `PRESETS` replaces all but the model's
    guidance scale, temperature and, where it names none of its own, diffusion steps and their start, if
    those are for any iteration; it has no more iterations than there are tokens. Its chain is one for the
    head of the model. One of the artifact's own is of its model and replaces everything. What the form of
    the model leaves no choice about stays as it is. Raises `RequestError`, also where what is named cannot be
    had of this model.
    """
    settings, presets = dict(settings), presets or {}
    name = settings.pop("preset", None)
    if name is not None:
        check_choice("preset", name, [*PRESETS, *presets])
    if name in presets:
        own = presets[name]
    elif name is not None:
        changes = _changes(name, model)
        of_iterations = isinstance(own.diffusion_steps, tuple)  # steps for its own iterations, not the preset's
        fields = _OF_THE_MODEL + (() if "diffusion_steps" in changes or of_iterations else _CHAIN_OF_THE_MODEL)
        kept = {field: getattr(own, field) for field in fields}
        own = dataclasses.replace(default_sampling(model), **kept | changes)
        if own.iterations is not None:
            own = dataclasses.replace(own, iterations=min(own.iterations, model.tokens))
    return apply_constraints(model, own.changed(settings), settings)


def _changes(name: str, model: ModelConfig) -> dict[str, Any]:
    """What the built-in preset called `name` changes for `model`."""
    if model.head != "flow":
        return PRESETS[name]
    return {field: value for field, value in PRESETS[name].items() if field not in _CHAIN} | _FLOW_CHAINS[name]
