"""Command-line options that several commands share."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from runtime.backends import BACKENDS
from runtime.checks import truncate
from runtime.cli.environment_variables import MachineOption
from runtime.errors import RequestError
from runtime.sampling.plan import CFG_SCHEDULES, MASK_SCHEDULES, STEP_SCHEDULES
from runtime.sampling.presets import PRESETS
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import SAMPLERS

PATH = click.Path(path_type=pathlib.Path)
CLASS_HELP = "by name or number; where one class has the other's number as its name, write name:NAME or index:NUMBER"
"""The part of the help of `--class` that says what it takes; `runtime.requests.validation.parse_class` reads it."""

_Command = TypeVar("_Command", bound=Callable[..., Any])

threads_option = click.option(
    "--threads",
    cls=MachineOption,
    type=click.IntRange(1, 1024),
    help="Number of processor threads. Default: all of this process.",
)

_BACKEND = (
    click.option(
        "--backend",
        cls=MachineOption,
        default="onnxruntime",
        show_default=True,
        help=f"The library that runs the engines: {', '.join(BACKENDS)}.",
    ),
    click.option(
        "--device",
        cls=MachineOption,
        help="The device that runs the engines: cpu or cuda. Default: the first that the backend supports.",
    ),
    click.option(
        "--cuda-graphs/--no-cuda-graphs",
        cls=MachineOption,
        default=True,
        show_default=True,
        help="Replay whole iterations on a GPU as CUDA graphs, for the same images in less time.",
    ),
)

preset_option = click.option(
    "--preset",
    metavar="NAME",
    help=f"A sampling preset: {', '.join(PRESETS)}, or one of the artifact. Other sampling options override it.",
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
    click.option(
        "--mask-schedule", type=click.Choice(MASK_SCHEDULES), help="How the tokens are distributed over the iterations."
    ),
    click.option("--token-order", type=click.Choice(TOKEN_ORDERS), help="The order in which tokens are generated."),
    click.option("--cfg-scale", type=float, help="Scale of classifier-free guidance; 1 means no guidance."),
    click.option(
        "--cfg-schedule", type=click.Choice(CFG_SCHEDULES), help="How the guidance scale grows over the iterations."
    ),
    click.option("--cfg-min", type=float, help="Scale from which the guidance schedule ramp grows."),
    click.option("--cfg-truncation", type=float, help="Diffusion steps below this timestep have no guidance."),
    click.option("--cfg-renorm", type=float, help="Least factor, 0 to 1, of renormalized guidance of a NOVA."),
    click.option(
        "--cfg-interval",
        type=(float, float),
        metavar="LOW HIGH",
        help="Use guidance only while the share of known tokens is between LOW and HIGH.",
    ),
    click.option("--low-res-iterations", type=int, help="Iterations of the first grid of a Hi-MAR, of low resolution."),
    click.option("--low-res-cfg-scale", type=float, help="Scale of guidance of a Hi-MAR's first grid."),
    click.option(
        "--recap-local-iterations",
        type=int,
        help="Number of iterations after each full pass of the backbone that are local passes (ReCAP); 0 means none.",
    ),
    click.option(
        "--recap-plain-iterations", type=int, help="Number of iterations before the first that local ones follow."
    ),
    click.option(
        "--recap-cache-buffer/--no-recap-cache-buffer",
        default=None,
        help="Whether local passes reuse the class buffer's keys and values, or compute it anew.",
    ),
    click.option(
        "--reuse-first-pass/--no-reuse-first-pass",
        default=None,
        help="Whether the first pass of the backbone, which knows no tokens, is kept for each class.",
    ),
)
_CHAIN = (
    click.option("--sampler", type=click.Choice(SAMPLERS), help="The sampler of the diffusion chains."),
    click.option(
        "--diffusion-steps",
        metavar="N|ddimN|N,N,...",
        callback=_parse_steps,
        help="Number of diffusion steps in every iteration, or one number for each iteration.",
    ),
    click.option(
        "--last-diffusion-steps",
        type=int,
        help="Number of diffusion steps in the last iteration, if the number shrinks.",
    ),
    click.option(
        "--step-schedule",
        type=click.Choice(STEP_SCHEDULES),
        help="How the number of diffusion steps shrinks over the iterations.",
    ),
    click.option(
        "--start-timestep", type=int, help="First timestep of a diffusion chain. Default: that of the sampler."
    ),
    click.option("--temperature", type=float, help="Factor on the noise of every diffusion step."),
    click.option("--eta", type=float, help="Amount of noise in the sampler ddim or flow-euler, 0 to 1."),
    click.option(
        "--recap-diffusion-share", type=float, help="Diffusion steps of local iterations as a share, at most 1."
    ),
    click.option("--flow-shift", type=float, help="Shift of the noise levels of a NOVA with a flow."),
    click.option("--low-res-sampler", type=click.Choice(SAMPLERS), help="The sampler of a Hi-MAR's first grid."),
    click.option(
        "--low-res-diffusion-steps",
        metavar="N|ddimN|N,N,...",
        callback=_parse_steps,
        help="Number of diffusion steps of a Hi-MAR's first grid.",
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
    return _all(_BACKEND, command)


def _all(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command
