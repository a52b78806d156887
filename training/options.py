"""Command-line options of every command that reads a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from runtime.options import PATH
from training.presets import PRESETS

_Command = TypeVar("_Command", bound=Callable[..., Any])

_CHECKPOINT = (
    click.option("--model", type=click.Choice(list(PRESETS)), help="The published model it is, where it does not say."),
    click.option("--tokenizer", type=PATH, help="Its KL autoencoder: a published .ckpt or a .safetensors."),
    click.option("--config", "config_file", type=PATH, help="JSON with constructor arguments that nothing else tells."),
)


def checkpoint_options(command: _Command) -> _Command:
    """`model`, `tokenizer` and `config_file`, as `training.checkpoint.load_checkpoint` takes them."""
    for option in reversed(_CHECKPOINT):
        command = option(command)
    return command
