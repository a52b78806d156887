"""`mar export`."""

from __future__ import annotations

import pathlib

import click

from mar_export.export import export_artifact
from runtime.options import PATH, preset_option, sampling_options
from runtime.plan import Sampling
from runtime.presets import requested_sampling
from training.checkpoint import load_checkpoint


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="The artifact folder to make.")
@click.option("--config", "config_file", type=PATH, help="JSON with the constructor arguments, for a published .pth.")
@preset_option
@sampling_options
def export(checkpoint: pathlib.Path, out: pathlib.Path, config_file: pathlib.Path | None, **settings: object) -> None:
    """Turn CHECKPOINT, a run folder or a published .pth, into an artifact, checked against eager PyTorch.

    The sampling options become the artifact's own, used where a request names none.
    """
    loaded = load_checkpoint(checkpoint, config_file)
    sampling = requested_sampling(Sampling(), loaded.model.config.tokens, settings)
    export_artifact(loaded, out, click.echo, sampling)
    click.echo(f"artifact written to {out}")
