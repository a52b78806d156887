"""`mar export`."""

from __future__ import annotations

import pathlib

import click

from mar_export.export import export_artifact
from training.checkpoint import load_checkpoint

_PATH = click.Path(path_type=pathlib.Path)


@click.command()
@click.argument("checkpoint", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="The artifact folder to make.")
@click.option("--config", "config_file", type=_PATH, help="JSON with the constructor arguments, for a published .pth.")
def export(checkpoint: pathlib.Path, out: pathlib.Path, config_file: pathlib.Path | None) -> None:
    """Turn CHECKPOINT, a run folder or a published .pth, into an artifact, checked against eager PyTorch."""
    export_artifact(load_checkpoint(checkpoint, config_file), out, say=click.echo)
    click.echo(f"artifact written to {out}")
