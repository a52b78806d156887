"""The line about a quantized artifact that generates with another plan than it was calibrated for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from runtime.generator import Generator


def tell_other_plan(generator: Generator, settings: Mapping[str, Any]) -> None:
    """Print a line on standard error if the artifact was calibrated for other sampling settings than a request has.

    Args:
        generator: The generator of the artifact.
        settings: The sampling settings of the request, as the caller gave them.
    """
    note = generator.manifest.calibration_note(generator.sampling(**settings))
    if note is not None:
        click.echo(note, err=True)
