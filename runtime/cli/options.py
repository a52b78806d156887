"""Command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from runtime.backends import BACKENDS
from runtime.checks import truncate
from runtime.cli.environment_variables import MachineOption
from runtime.cli.path_types import GivenPath
from runtime.errors import RequestError
from runtime.sampling.plan import CFG_SCHEDULES, MASK_SCHEDULES, STEP_SCHEDULES
from runtime.sampling.presets import PRESETS
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import SAMPLERS

PATH = GivenPath()
CLASS_HELP = "by name or number; if a name is itself a number, write name:NAME or index:NUMBER"
"""The part of the help of `--class` that says what it takes; `runtime.requests.validation.parse_class` reads it."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _backend(option_class: type[click.Option]) -> tuple[Callable[[_Command], _Command], ...]:
    return (
        click.option(
            "--backend",
            cls=option_class,
            type=click.Choice(list(BACKENDS)),
            default="onnxruntime",
            show_default=True,
            help="The library that runs the engines.",
        ),
        click.option(
            "--device",
            cls=option_class,
            type=click.Choice(sorted({device for devices in BACKENDS.values() for device in devices})),
            help="The device that runs the engines. Default: the first that the backend supports.",
        ),
    )


def _threads(option_class: type[click.Option]) -> Callable[[_Command], _Command]:
    return click.option(
        "--threads",
        cls=option_class,
        type=click.IntRange(1, 1024),
        help="Number of processor threads. Default: all that the process may use.",
    )


threads_option = _threads(MachineOption)

_CUDA_GRAPHS = click.option(
    "--cuda-graphs/--no-cuda-graphs",
    cls=MachineOption,
    default=True,
    show_default=True,
    help="On a GPU, record whole iterations as CUDA graphs and replay them: the same images in less time.",
)


_PRESET_NAMES = f"{', '.join(PRESETS)}, or one of the artifact"
preset_option = click.option(
    "--preset",
    metavar="NAME",
    help=f"A named set of sampling settings: {_PRESET_NAMES}. Options for single settings override it.",
)
default_preset_option = click.option(
    "--preset",
    metavar="NAME",
    help=f"The sampling preset of requests that name none: {_PRESET_NAMES}. Default: the artifact's own settings.",
)


def _parse_steps(context: click.Context, option: click.Parameter, text: str | None) -> str | tuple[int, ...] | None:
    """Return the value of an option for diffusion steps: one number or ddimN as text, or one for each iteration."""
    if text is None or "," not in text:
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"{option.opts[0]} must be N, ddimN or N,N,..., found {truncate(text)}") from None


_SCHEDULE = (
    click.option("--iterations", type=int, help="Number of iterations, each one pass of the backbone."),
    click.option("--mask-schedule", type=click.Choice(MASK_SCHEDULES), help="How many tokens each iteration draws."),
    click.option("--token-order", type=click.Choice(TOKEN_ORDERS), help="The order in which tokens are drawn."),
    click.option("--cfg-scale", type=float, help="Scale of classifier-free guidance; 1 means no guidance."),
    click.option(
        "--cfg-schedule", type=click.Choice(CFG_SCHEDULES), help="How the guidance scale grows over the iterations."
    ),
    click.option("--cfg-min", type=float, help="First guidance scale of --cfg-schedule ramp."),
    click.option("--cfg-truncation", type=float, help="Diffusion steps below this timestep have no guidance."),
    click.option(
        "--cfg-renorm",
        type=float,
        help="NOVA only: scale guided predictions down to the size of unguided ones, but not below this factor, "
        "0 to 1.",
    ),
    click.option(
        "--cfg-interval",
        type=(float, float),
        metavar="LOW HIGH",
        help="Use guidance only while the share of known tokens is between LOW and HIGH.",
    ),
    click.option(
        "--low-res-iterations",
        type=int,
        help="Hi-MAR only: number of iterations of its first grid, which has a low resolution.",
    ),
    click.option("--low-res-cfg-scale", type=float, help="Hi-MAR only: guidance scale of its first grid."),
    click.option(
        "--recap-local-iterations",
        type=int,
        help="ReCAP: number of iterations with a cheaper, local pass of the backbone after each full pass; 0 is off.",
    ),
    click.option(
        "--recap-plain-iterations",
        type=int,
        help="ReCAP: number of iterations at the start that no local ones follow.",
    ),
    click.option(
        "--recap-cache-buffer/--no-recap-cache-buffer",
        default=None,
        help="ReCAP: whether local passes reuse the keys and values of the class buffer, or compute them again.",
    ),
    click.option(
        "--reuse-first-pass/--no-reuse-first-pass",
        default=None,
        help="Keep the first pass of the backbone for each class; no tokens are known then, so it is always the same.",
    ),
)
_CHAIN = (
    click.option("--sampler", type=click.Choice(SAMPLERS), help="The sampler of the diffusion chains."),
    click.option(
        "--diffusion-steps",
        metavar="N|ddimN|N,N,...",
        callback=_parse_steps,
        help="Number of diffusion steps: N in every iteration, ddimN with the published spacing of DDIM, or one number "
        "for each iteration.",
    ),
    click.option(
        "--last-diffusion-steps",
        type=int,
        help="Number of diffusion steps in the last iteration, if it shrinks from iteration to iteration.",
    ),
    click.option(
        "--step-schedule",
        type=click.Choice(STEP_SCHEDULES),
        help="How the number of diffusion steps shrinks over the iterations.",
    ),
    click.option(
        "--start-timestep",
        type=int,
        help="First timestep of a diffusion chain, the noisiest, at most 999. Default: that of the sampler.",
    ),
    click.option("--temperature", type=float, help="Factor on the noise that every diffusion step adds."),
    click.option("--eta", type=float, help="Share of noise that the samplers ddim and flow-euler add, 0 (none) to 1."),
    click.option(
        "--recap-diffusion-share",
        type=float,
        help="ReCAP: diffusion steps of a local iteration as a share of those of a full one, at most 1.",
    ),
    click.option("--flow-shift", type=float, help="NOVA with a flow only: shift of its noise levels."),
    click.option("--low-res-sampler", type=click.Choice(SAMPLERS), help="Hi-MAR only: the sampler of its first grid."),
    click.option(
        "--low-res-diffusion-steps",
        metavar="N|ddimN|N,N,...",
        callback=_parse_steps,
        help="Hi-MAR only: number of diffusion steps of its first grid.",
    ),
)


def sampling_options(command: _Command) -> _Command:
    """Add an option for every field of `runtime.sampling.settings.Sampling`.

    An option that is not given is None, which stands for the artifact's setting.
    """
    return schedule_options(_all(_CHAIN, command))


def schedule_options(command: _Command) -> _Command:
    """Add only the sampling options about iterations, the order of tokens, and guidance."""
    return _all(_SCHEDULE, command)


def backend_options(command: _Command) -> _Command:
    """Add options for the arguments `backend`, `device` and `cuda_graphs` of `Generator.load`."""
    return _all((*_backend(MachineOption), _CUDA_GRAPHS), command)


def server_backend_options(command: _Command) -> _Command:
    """Add `--backend`, `--device` and `--threads` of another machine, for which variables of this one do not count."""
    return _all((*_backend(click.Option), _threads(click.Option)), command)


def _all(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command
