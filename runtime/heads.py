"""How a head can be drawn with: the samplers of its kind, and for a distilled one only what it was distilled to."""

from __future__ import annotations

from runtime.checks import check_choice
from runtime.config import ModelConfig
from runtime.errors import RequestError
from runtime.plan import Sampling
from runtime.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, SAMPLERS

_SAMPLERS = {"diffusion": DIFFUSION_SAMPLERS, "flow": FLOW_SAMPLERS}
_FLOW_STEPS = 25


def samplers_of(model: ModelConfig) -> tuple[str, ...]:
    """Those that `model` can be drawn with; the one that its head was distilled for, if it was."""
    return FLOW_SAMPLERS[:1] if model.distilled_steps else _SAMPLERS[model.head]


def usual_sampling(model: ModelConfig) -> Sampling:
    """How `model` is drawn with where nobody says: as published, or as its head wants it."""
    if model.distilled_steps:
        return Sampling(sampler="flow-euler", diffusion_steps=model.distilled_steps)
    return Sampling(sampler="flow-2m", diffusion_steps=_FLOW_STEPS) if model.head == "flow" else Sampling()


def short_chain(model: ModelConfig, steps: int) -> dict[str, int]:
    """Settings of a chain of few steps that amplifies no error much; a distilled head's is short already."""
    if model.distilled_steps:
        return {}
    return {"diffusion_steps": steps} | ({"start_timestep": 900} if model.head == "diffusion" else {})


def check_head(model: ModelConfig, sampling: Sampling) -> None:
    """Refuse a sampler of another head, and of a distilled one other steps than it knows. Raises `RequestError`."""
    check_choice("sampler", sampling.sampler, SAMPLERS)
    known = samplers_of(model)
    kind = f"a head distilled to {model.distilled_steps} steps" if model.distilled_steps else f"a {model.head} head"
    if sampling.sampler not in known:
        raise RequestError(f"{kind} is drawn with the sampler {' or '.join(known)}, found {sampling.sampler!r}")
    if not model.distilled_steps:
        return
    for name, wanted, why in (
        ("diffusion_steps", model.distilled_steps, "it knows no others"),
        ("last_diffusion_steps", None, "it knows no others"),
        ("eta", 0, "its steps lead to one token"),
        ("cfg_scale", 1, "guidance is part of what it was distilled from"),
    ):
        found = getattr(sampling, name)
        if found != wanted:
            raise RequestError(f"{kind} is drawn with {name} {wanted}, since {why}, found {found!r}")
