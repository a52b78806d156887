"""The checkpoint that a command names by an argument and the options of `checkpoint_options`."""

from __future__ import annotations

import pathlib
from typing import Any

from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.cli.options import echo_warnings

# The options, and the arguments of `load_checkpoint` that they are.
_ARGUMENTS = {
    "model": "name",
    "tokenizer": "tokenizer",
    "config_file": "config_file",
    "latent_scale": "latent_scale",
    "latent_shift": "latent_shift",
}


def take_checkpoint_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of `checkpoint_options` from `options`; return them as arguments of `load_checkpoint`."""
    return {argument: options.pop(option) for option, argument in _ARGUMENTS.items()}


def load_named_checkpoint(checkpoint: pathlib.Path, options: dict[str, Any], *, any_family: bool = False) -> Checkpoint:
    """Load a checkpoint and print its warnings; its options are removed from `options`. Raises `MarError`.

    `any_family` is that of `load_checkpoint`.
    """
    loaded = load_checkpoint(checkpoint, **take_checkpoint_options(options), any_family=any_family)
    echo_warnings(loaded.warnings)
    return loaded
