"""Command-line options that several commands share."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import click

from runtime.backends import BACKENDS
from runtime.checks import truncate
from runtime.errors import RequestError
from runtime.sampling.plan import CFG_SCHEDULES, MASK_SCHEDULES, STEP_SCHEDULES
from runtime.sampling.presets import PRESETS
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import SAMPLERS

PATH = click.Path(path_type=pathlib.Path)

_Command = TypeVar("_Command", bound=Callable[..., Any])

threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Processor threads. Default: all.")

_BACKEND = (
    click.option(
        "--backend",
        default="onnxruntime",
        show_default=True,
        help=f"What runs the engines: {', '.join(BACKENDS)}.",
    ),
    click.option("--device", help="Where it runs them: cpu or cuda. Default: the backend's usual one."),
    click.option(
        "--cuda-graphs/--no-cuda-graphs",
        default=True,
        show_default=True,
        help="Whether a GPU replays whole iterations.",
    ),
)

preset_option = click.option(
    "--preset",
    metavar="NAME",
    help=f"A named way to draw: {', '.join(PRESETS)}, or one of the artifact's own. Other options change it.",
)


def _steps(context: click.Context, option: click.Parameter, given: str | None) -> str | tuple[int, ...] | None:
    """What --diffusion-steps says: one number or ddimN, as text, or a number for each iteration."""
    if given is None or "," not in given:
        return given
    try:
        return tuple(int(part) for part in given.split(","))
    except ValueError:
        raise RequestError(f"--diffusion-steps must be N, ddimN or N,N,..., found {truncate(given)}") from None


_SCHEDULE = (
    click.option("--iterations", type=int, help="Passes of the backbone."),
    click.option("--mask-schedule", type=click.Choice(MASK_SCHEDULES), help="How tokens spread over iterations."),
    click.option("--token-order", type=click.Choice(TOKEN_ORDERS), help="Which tokens come first."),
    click.option("--cfg-scale", type=float, help="Guidance scale; 1 is none."),
    click.option("--cfg-schedule", type=click.Choice(CFG_SCHEDULES), help="How guidance grows over the iterations."),
    click.option(
        "--cfg-interval", type=(float, float), metavar="LOW HIGH", help="Shares of known tokens with guidance."
    ),
)
_CHAIN = (
    click.option("--sampler", type=click.Choice(SAMPLERS), help="How a diffusion chain is run."),
    click.option(
        "--diffusion-steps",
        metavar="N|ddimN|N,N,...",
        callback=_steps,
        help="Steps of each diffusion chain, or of each iteration's.",
    ),
    click.option("--last-diffusion-steps", type=int, help="What the steps shrink to over the iterations."),
    click.option("--step-schedule", type=click.Choice(STEP_SCHEDULES), help="How they shrink."),
    click.option("--start-timestep", type=int, help="First timestep of a chain. Default: the sampler's own."),
    click.option("--temperature", type=float, help="Scale of the noise of each diffusion step."),
    click.option("--eta", type=float, help="Noise of the sampler ddim, 0 to 1."),
)


def bar_shown() -> bool:
    """Whether anybody would see a bar: standard error is a terminal.

    Where nobody would, a drawing is to have no `progress` either: a GPU waits for each iteration that it tells of.
    """
    return sys.stderr.isatty()


def progress_bar(length: int, label: str) -> AbstractContextManager[Any]:
    """A bar with the time left on standard error, for people only: nothing unless `bar_shown`."""
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=not bar_shown())


def sampling_options(command: _Command) -> _Command:
    """The fields of `runtime.sampling.settings.Sampling`; what is not given is None, for the artifact's own."""
    return schedule_options(_all(_CHAIN, command))


def schedule_options(command: _Command) -> _Command:
    """Those of them that say which tokens are predicted when, under how much guidance."""
    return _all(_SCHEDULE, command)


def backend_options(command: _Command) -> _Command:
    """`backend`, `device` and `cuda_graphs`, as `Generator.load` takes them."""
    return _all(_BACKEND, command)


def _all(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command
