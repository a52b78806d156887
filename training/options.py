"""Command-line options of every command that reads a checkpoint, and of those that train."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from runtime.options import PATH
from training.config import StepConfig
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


def training_options(settings: type[StepConfig]) -> Callable[[_Command], _Command]:
    """A flag for each field of `settings`, None where it is not given."""
    types = typing.get_type_hints(settings)

    def add(command: _Command) -> _Command:
        for field in reversed(dataclasses.fields(settings)):
            flag, kind = f"--{field.name.replace('_', '-')}", types[field.name]
            choices = field.metadata.get("choices")
            default = "" if field.default is dataclasses.MISSING else f" [default: {str(field.default).lower()}]"
            command = click.option(
                f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
                field.name,
                type=click.Choice(choices) if choices else kind,
                default=None,
                help=field.metadata["help"] + default,
            )(command)
        return command

    return add
