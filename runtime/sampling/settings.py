"""The sampling settings of an image: every value that decides how it is generated, except its random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import RequestError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw: what fills a plan. Checked where the plan is built.

    The order and the number of tokens: `iterations` is K, min(64, tokens) where None;
    `mask_schedule`, one of `MASK_SCHEDULES`, spreads the tokens over them; `token_order`, one of
    `runtime.sampling.rng.TOKEN_ORDERS`, says which tokens come first.

    Guidance: `cfg_scale` is the guidance scale, 1 for none, growing with the share of known tokens
    under the `linear` `cfg_schedule`; outside `cfg_interval`, in shares of tokens known before the
    iteration, there is none, and the unconditional half is not computed.

    The diffusion chains: `sampler` is one of `runtime.sampling.samplers.SAMPLERS`; `diffusion_steps` a number,
    `"ddimN"`, the published respacing, or a number for each iteration; `last_diffusion_steps`, where not
    None, what the steps shrink to over the iterations, by `step_schedule`; `start_timestep` the first
    timestep, where None the sampler's own; `temperature` scales the noise of each step; `eta` is how
    much of it `ddim` and `flow-euler` have.
    """

    iterations: int | None = None
    mask_schedule: str = "cosine"
    token_order: str = "random"
    cfg_scale: float = 1.0
    cfg_schedule: str = "linear"
    cfg_interval: Sequence[float] = (0.0, 1.0)
    sampler: str = "ddpm"
    diffusion_steps: int | str | Sequence[int] = 100
    last_diffusion_steps: int | None = None
    step_schedule: str = "linear"
    start_timestep: int | None = None
    temperature: float = 1.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cfg_interval", "diffusion_steps"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def changed(self, settings: Mapping[str, Any]) -> Sampling:
        """These settings with those of `settings` that are not None. Raises `RequestError` on unknown names."""
        unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(self)})
        if unknown:
            known = ", ".join(field.name for field in dataclasses.fields(self))
            raise RequestError(f"unknown sampling settings {', '.join(unknown)}; known: {known}")
        return dataclasses.replace(self, **{name: value for name, value in settings.items() if value is not None})

    def describe(self) -> str:
        """Every setting that is not None, for people."""
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items() if value is not None)
