"""The sampling settings of an image: every value that decides how it is generated, except its random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from runtime.checks import truncate
from runtime.errors import RequestError

_INT64 = 2**63


LOW_RES_SETTINGS = ("low_res_iterations", "low_res_cfg_scale", "low_res_sampler", "low_res_diffusion_steps")
"""The settings of the low-resolution grid of a Hi-MAR. None stands for the published ones."""

RECAP_SETTINGS = (
    "recap_local_iterations",
    "recap_plain_iterations",
    "recap_cache_buffer",
    "recap_diffusion_share",
)
"""The settings of ReCAP, see `runtime.sampling.recap`."""

LATER_SETTINGS = frozenset(
    {"cfg_min", "cfg_truncation", "cfg_renorm", "flow_shift", *LOW_RES_SETTINGS, *RECAP_SETTINGS, "reuse_first_pass"}
)
"""Settings that older manifests and images do not have. None stands for them."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The sampling settings of one generation. Their values are checked when a plan is built from them.

    Attributes:
        iterations: The number of iterations, in each of which the backbone runs once and several tokens are
            predicted (the published `num_iter`). None stands for 64, or for the number of tokens if that is less.
        mask_schedule: How many tokens each iteration predicts, one of `runtime.sampling.plan.MASK_SCHEDULES`.
        token_order: Which tokens are generated first, one of `runtime.sampling.rng.TOKEN_ORDERS`.
        cfg_scale: The scale of classifier-free guidance (the published `cfg`); 1 is no guidance.
        cfg_schedule: `linear`: the scale grows from 1 with the share of tokens that are known. `constant`: every
            iteration has the full scale. `ramp`: it grows by equal steps from `cfg_min`.
        cfg_interval: The lowest and highest share of known tokens, 0 to 1, between which iterations are guided.
            Other iterations have no guidance and do not compute the unconditional half.
        sampler: The sampler of the head, one of `runtime.sampling.samplers.SAMPLERS`, or `vq`.
        diffusion_steps: The steps of the diffusion chain of a token (the published `num_sampling_steps`): a number;
            or `"ddimN"`, the published spacing of N steps by an integer stride; or one number for each iteration.
        last_diffusion_steps: The steps of the last iteration, if the number of steps shrinks over the iterations
            (DiSA, arXiv 2505.20297). None: every iteration has the same number.
        step_schedule: How the number of steps shrinks, one of `runtime.sampling.plan.STEP_SCHEDULES`.
        start_timestep: The first timestep of a diffusion chain, at most 999. None: the default of the sampler.
        temperature: The factor on the noise that each step adds.
        eta: The share of noise that the samplers `ddim` and `flow-euler` add in a step: 0 is none, 1 is as much as
            DDPM.
        cfg_min: The scale from which the schedule `ramp` of guidance grows. None: `cfg_scale`.
        cfg_truncation: Diffusion steps below this timestep, 0 to 1000, have no guidance. None: all steps have it.
        cfg_renorm: The least factor, 0 to 1, by which a guided prediction is made as small as the conditional one, over
            the whole image. None: it stays as it is.
        flow_shift: The shift of the noise levels of a NOVA with a flow. None: that of the model.
        low_res_iterations: The iterations of the low-resolution grid of a Hi-MAR. None: as published, four times its
            side. The settings without `low_res_` are then those of the full grid; those that have no such twin hold
            for both.
        low_res_cfg_scale: The guidance scale of that grid (the published `re_cfg`). None: `cfg_scale`.
        low_res_sampler: Its sampler. None: ddpm.
        low_res_diffusion_steps: The steps of its diffusion chains (the published `num_sampling_steps`). None: 100.
        recap_local_iterations: How many iterations after a full pass of the backbone are local passes (ReCAP, arXiv
            2505.19089, the published `num_cache_iters`). None or 0: none, and the other settings of ReCAP have no
            effect.
        recap_plain_iterations: The iterations before the first such group (the published `pre_full_iters`). None: 0.
        recap_cache_buffer: Whether local passes reuse the keys and values of the class buffer too (the published
            `cache_buffer`), or compute the buffer anew. None: they reuse them.
        recap_diffusion_share: The diffusion steps of local iterations as a share of those of full ones, above 0 to 1
            (the published sampler has 0.5). None: as many.
        reuse_first_pass: Whether the first pass of the backbone, which knows no tokens, is computed once for a class
            and kept; see `runtime.loops.first_pass`. It has no effect on edits, on a GPU, where the first iteration
            belongs to a group of ReCAP, and in families whose first pass depends on more than the class. None: no.
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
    cfg_min: float | None = None
    cfg_truncation: float | None = None
    cfg_renorm: float | None = None
    flow_shift: float | None = None
    low_res_iterations: int | None = None
    low_res_cfg_scale: float | None = None
    low_res_sampler: str | None = None
    low_res_diffusion_steps: int | str | Sequence[int] | None = None
    recap_local_iterations: int | None = None
    recap_plain_iterations: int | None = None
    recap_cache_buffer: bool | None = None
    recap_diffusion_share: float | None = None
    reuse_first_pass: bool | None = None

    def __post_init__(self) -> None:
        for name in ("cfg_interval", "diffusion_steps", "low_res_diffusion_steps"):
            if isinstance(getattr(self, name), list):  # JSON has lists; a tuple can be compared and hashed
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def recap(self) -> bool:
        """Whether there are local iterations."""
        return bool(self.recap_local_iterations)

    def changed(self, overrides: Mapping[str, Any]) -> Sampling:
        """Return these settings with the values of `overrides` that are not None.

        Raises:
            RequestError: A name is not a field of this class.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(overrides.keys() - set(fields))
        if unknown:
            raise RequestError(f"unknown sampling settings {', '.join(unknown)}; known: {', '.join(fields)}")
        return dataclasses.replace(self, **{name: value for name, value in overrides.items() if value is not None})

    def describe(self) -> str:
        """Return all settings that are not None as text: `iterations 64, mask_schedule cosine, ...`."""
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items() if value is not None)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a caller gives them, with Python's numbers in place of numpy's.

    Raises:
        RequestError: A value is no number, text, list of numbers or None, or has more than 64 bits.
    """
    return {name: _plain(name, value) for name, value in settings.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(f"an entry of {name}", each) for each in value)
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    if value is None or isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < _INT64):
        return value
    raise RequestError(f"{name} must be a number, a text or a list of numbers, found {truncate(value)}")


class SamplingOverrides(TypedDict, total=False):
    """Single sampling settings as keyword arguments: the fields of `Sampling`. None leaves a setting unchanged."""

    iterations: int | None
    mask_schedule: str | None
    token_order: str | None
    cfg_scale: float | None
    cfg_schedule: str | None
    cfg_interval: Sequence[float] | None
    sampler: str | None
    diffusion_steps: int | str | Sequence[int] | None
    last_diffusion_steps: int | None
    step_schedule: str | None
    start_timestep: int | None
    temperature: float | None
    eta: float | None
    cfg_min: float | None
    cfg_truncation: float | None
    cfg_renorm: float | None
    flow_shift: float | None
    low_res_iterations: int | None
    low_res_cfg_scale: float | None
    low_res_sampler: str | None
    low_res_diffusion_steps: int | str | Sequence[int] | None
    recap_local_iterations: int | None
    recap_plain_iterations: int | None
    recap_cache_buffer: bool | None
    recap_diffusion_share: float | None
    reuse_first_pass: bool | None


class SamplingRequest(SamplingOverrides, total=False):
    """The sampling settings of a request, as keyword arguments: a starting point and single settings that override it.

    Without `preset` and `sampling`, the artifact's own settings are the starting point. Give one of the two at most.

    Attributes:
        preset: The name of a preset: one of `runtime.sampling.presets.PRESETS`, or one that the artifact has.
        sampling: Complete settings, which replace the artifact's own.
    """

    preset: str | None
    sampling: Sampling | None
