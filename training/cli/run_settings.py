"""Settings of a run that commands take over when they read its checkpoint."""

from __future__ import annotations

import pathlib
from typing import Any

import click
from click.core import ParameterSource

from runtime.image_files import Color, parse_color
from training.checkpoints.run_folder import CONFIG_FILE, read_run_config


def setting_of_run(source: pathlib.Path, name: str) -> Any:
    """Return a setting of the training if a source is a run folder that has it; None otherwise."""
    training = read_run_config(source).get("training") if (source / CONFIG_FILE).is_file() else None
    return training.get(name) if isinstance(training, dict) else None


def background_of_run(source: pathlib.Path, background: Color) -> Color:
    """Return the colour that the current command was given as `--background`, or else that of a run, or the default."""
    saved = setting_of_run(source, "background")
    given = click.get_current_context().get_parameter_source("background") is not ParameterSource.DEFAULT
    return background if given or not isinstance(saved, str) else parse_color(f"{source}, background", saved)
