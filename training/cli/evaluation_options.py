"""Options of the commands that draw images and compare them with real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from runtime.cli.options import PATH
from training.evaluation.feature_networks import CLASSIFIER, NETWORKS

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--features",
        type=click.Choice(NETWORKS),
        multiple=True,
        default=(CLASSIFIER,),
        show_default=True,
        help="The network whose features are compared. The option can be repeated.",
    ),
    click.option(
        "--classifier",
        type=PATH,
        help="The file of the classifier, which is trained first if it does not exist. Default: one in out/classifiers "
        "for each dataset.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1, 1024),
        default=1,
        show_default=True,
        help="The number of processes that generate images, which share --threads. More than one need the extra ray.",
    ),
)


def evaluation_options(command: _Command) -> _Command:
    """Add the options `features`, `classifier` and `processes`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
