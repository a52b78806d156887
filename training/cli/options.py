"""Command-line options of every command that reads a checkpoint, and of those that train it or its head."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from runtime.cli.options import PATH, threads_option
from training.config import StepConfig
from training.models.model_sizes import MODEL_SIZES

_Command = TypeVar("_Command", bound=Callable[..., Any])

_CHECKPOINT = (
    click.option(
        "--model", type=click.Choice(list(MODEL_SIZES)), help="The published model it is, where it does not say."
    ),
    click.option("--tokenizer", type=PATH, help="Its KL autoencoder: a published .ckpt or a .safetensors."),
    click.option("--config", "config_file", type=PATH, help="JSON with constructor arguments that nothing else tells."),
)

_HEAD = (
    click.option("--data", type=PATH, required=True, help="The dataset the model was trained on, or its latents."),
    click.option("--out", type=PATH, required=True, help="The run folder to make."),
    click.option(
        "--images",
        type=click.IntRange(1),
        default=8192,
        show_default=True,
        help="That the backbone is asked about, 16 tokens each.",
    ),
    click.option("--steps", type=click.IntRange(1), default=3000, show_default=True, help="Training steps."),
    click.option("--batch-size", type=click.IntRange(1), default=1024, show_default=True, help="Tokens a step."),
    click.option(
        "--learning-rate",
        type=click.FloatRange(0, min_open=True),
        default=1e-3,
        show_default=True,
        help="It falls to zero along a cosine.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything drawn."),
    threads_option,
)


def checkpoint_options(command: _Command) -> _Command:
    """`model`, `tokenizer` and `config_file`, as `training.checkpoints.checkpoint.load_checkpoint` takes them."""
    return _all(_CHECKPOINT, command)


def head_options(command: _Command) -> _Command:
    """What `training.heads.new_head` takes: data, how much of it, and how long and how fast a head is trained."""
    return _all(_HEAD, command)


def _all(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
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
