"""The options of the commands that form batches of requests: `mar serve` and `mar export-triton`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from runtime.service.settings import ServiceSettings, limits

_DEFAULTS = ServiceSettings()
_Command = TypeVar("_Command", bound=Callable[..., Any])


def batch_options(batch_help: str, wait_help: str) -> Callable[[_Command], _Command]:
    """Return the decorator that adds `--max-batch` and `--max-wait-ms` to a command, with their help."""

    def add(command: _Command) -> _Command:
        command = click.option(
            "--max-wait-ms",
            type=click.FloatRange(*(1000 * limit for limit in limits("max_wait"))),
            default=1000 * _DEFAULTS.max_wait,
            show_default=True,
            help=wait_help,
        )(command)
        return click.option(
            "--max-batch",
            type=click.IntRange(*limits("max_batch")),
            default=_DEFAULTS.max_batch,
            show_default=True,
            help=batch_help,
        )(command)

    return add
