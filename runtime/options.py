"""Command-line options that several commands share."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import click

from runtime.diffusion import SAMPLERS
from runtime.plan import CFG_SCHEDULES

PATH = click.Path(path_type=pathlib.Path)

_Command = TypeVar("_Command", bound=Callable[..., Any])

threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Processor threads. Default: all.")

_SAMPLING = (
    click.option("--iterations", type=int, help="Passes of the backbone."),
    click.option("--cfg-scale", type=float, help="Guidance scale; 1 is none."),
    click.option("--cfg-schedule", type=click.Choice(CFG_SCHEDULES), help="How guidance grows over the iterations."),
    click.option("--temperature", type=float, help="Scale of the noise of each diffusion step."),
    click.option("--sampler", type=click.Choice(SAMPLERS)),
    click.option("--diffusion-steps", metavar="N|ddimN", help="Steps of each diffusion chain."),
)


def progress_bar(length: int, label: str) -> AbstractContextManager[Any]:
    """A bar with the time left on standard error, for people only: nothing where that is no terminal."""
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty())


def sampling_options(command: _Command) -> _Command:
    """The fields of `runtime.plan.Sampling`; what is not given is None, for the artifact's own."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command
