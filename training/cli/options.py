"""Options that several commands share: those that name a checkpoint, and those of training."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import click

from runtime.cli.options import PATH
from runtime.errors import ConfigError, RequestError
from runtime.log import LOG
from training.config import StepConfig
from training.models.model_sizes import MODEL_SIZES

_Command = TypeVar("_Command", bound=Callable[..., Any])

LATENT_SCALE_OPTIONS = (
    click.option(
        "--latent-scale",
        type=float,
        help="The factor that gives the latents of --tokenizer unit variance. Default: that of its file, or 0.2325.",
    ),
    click.option(
        "--latent-shift",
        type=float,
        help="What is subtracted from the latents of --tokenizer before scaling. Default: that of its file, or 0.",
    ),
)

_CHECKPOINT = (
    click.option(
        "--model",
        type=click.Choice(list(MODEL_SIZES)),
        help="The size of the model in a published checkpoint. Without it the size is inferred from the weights.",
    ),
    click.option(
        "--tokenizer",
        type=PATH,
        help="The KL autoencoder: a .ckpt, a .safetensors or a folder of diffusers. A run folder has its own.",
    ),
    *LATENT_SCALE_OPTIONS,
    click.option(
        "--model-config",
        "config_file",
        type=PATH,
        help="A JSON file with constructor arguments of the model that cannot be inferred from the weights.",
    ),
)


def checkpoint_options(command: _Command) -> _Command:
    """Add the options that are arguments of `load_checkpoint`: model, tokenizer, config and latent scale."""
    return _add(_CHECKPOINT, command)


def latent_scale_options(command: _Command) -> _Command:
    """Add the options `latent_scale` and `latent_shift`, which are arguments of `load_vae`."""
    return _add(LATENT_SCALE_OPTIONS, command)


def echo_warnings(warnings: Sequence[str]) -> None:
    """Tell the warnings of a checkpoint."""
    for warning in warnings:
        LOG.warning(f"warning: {warning}")


epochs_option = click.option(
    "--epochs", type=click.IntRange(1), help="Number of times that the run takes all images, in place of --steps."
)


def check_resume_options(given: Mapping[str, object]) -> None:
    """Check that no option of a new run is given beside --resume.

    Args:
        given: The values of such options by name, None for one that is not given.

    Raises:
        ConfigError: One is given.
    """
    if names := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"a run resumed with --resume has its model already; remove {' and '.join(names)}")


def _add(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def _plain_type(kind: Any) -> Any:
    """Return the type of a setting without None, which stands for one that is not set."""
    (plain,) = (part for part in typing.get_args(kind) or (kind,) if part is not type(None))
    return plain


def training_options(
    settings: type[StepConfig], names: Collection[str] | None = None
) -> Callable[[_Command], _Command]:
    """Return a decorator that adds an option for each field of `settings`; an option that is not given is None.

    Args:
        settings: The class of the settings.
        names: The fields that get an option; None for all.
    """
    types = typing.get_type_hints(settings)

    def add(command: _Command) -> _Command:
        for field in reversed(dataclasses.fields(settings)):
            if names is not None and field.name not in names:
                continue
            flag, kind = f"--{field.name.replace('_', '-')}", _plain_type(types[field.name])
            choices = field.metadata.get("choices")
            shown = field.default not in (dataclasses.MISSING, None, "")
            default = f" [default: {str(field.default).lower()}]" if shown else ""
            command = click.option(
                f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
                field.name,
                type=click.Choice(choices) if choices else kind,
                default=None,
                help=field.metadata["help"] + default,
            )(command)
        return command

    return add


def check_image_size(image_size: int, stride: int) -> None:
    """Check that an autoencoder of a stride has whole latents of images of `--image-size`. Raises `RequestError`."""
    if image_size < 1 or image_size % stride:
        raise RequestError(f"--image-size must be a multiple of {stride}, found {image_size}")
