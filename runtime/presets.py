"""Named ways to draw, from the published one to the fastest: each a choice of sampling settings.

What each costs and keeps is measured in docs/numbers.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.checks import check_choice
from runtime.plan import Sampling

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"iterations": 64},
    "balanced": {"iterations": 32, "sampler": "ddim", "diffusion_steps": 25},
    "fast": {"iterations": 14, "sampler": "ddim", "diffusion_steps": 14, "cfg_interval": (0.1, 1.0)},
    "turbo": {"iterations": 10, "sampler": "ddim", "diffusion_steps": 10, "cfg_interval": (0.15, 1.0)},
}

# What belongs to a model rather than to a way of drawing with it, as in the published constructor and
# scripts: no preset changes the first two, and the others only one that names its own diffusion steps.
_OF_THE_MODEL = ("cfg_scale", "temperature")
_CHAIN_OF_THE_MODEL = ("diffusion_steps", "start_timestep")


def requested_sampling(own: Sampling, length: int, settings: Mapping[str, Any]) -> Sampling:
    """The settings of a request for images of `length` tokens: `own`, then a preset, then what is named.

    `settings` are fields of `Sampling`, and `preset`, one of `PRESETS`; None stands for what is there
    already. A preset replaces all but the model's guidance scale, temperature and, where it names
    none of its own, diffusion steps and their start; it has no more iterations than there are
    tokens. Raises `RequestError`.
    """
    settings = dict(settings)
    name = settings.pop("preset", None)
    if name is not None:
        check_choice("preset", name, list(PRESETS))
        changes = PRESETS[name]
        fields = _OF_THE_MODEL + (() if "diffusion_steps" in changes else _CHAIN_OF_THE_MODEL)
        own = dataclasses.replace(Sampling(**{field: getattr(own, field) for field in fields}), **changes)
        if own.iterations is not None:
            own = dataclasses.replace(own, iterations=min(own.iterations, length))
    return own.changed(settings)
