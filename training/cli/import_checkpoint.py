"""The command `mar import`."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from runtime.cli.options import PATH
from runtime.errors import RequestError
from runtime.files import holding
from training.checkpoints.checkpoint import save_run
from training.cli.named_checkpoint import load_named_checkpoint
from training.cli.options import checkpoint_options


@click.command("import")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="The run folder to create.")
@checkpoint_options
def import_(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    **options: Any,
) -> None:
    """Convert a published CHECKPOINT into a run folder with safetensors and a complete config.

    CHECKPOINT is a .pth file, a .safetensors file, or a folder in the layout of diffusers. The run keeps only the
    moving average of the weights.
    """
    with holding(out):
        if out.exists():
            raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
        loaded = load_named_checkpoint(checkpoint, options)
        save_run(out, loaded)
    config, parameters = loaded.model.config, sum(tensor.numel() for tensor in loaded.model.parameters())
    click.echo(
        f"{parameters / 1e6:.1f} M parameters, {config.tokens} tokens of {config.token_channels} values, "
        f"{config.img_size}x{config.img_size} pixels, tokenizer {loaded.tokenizer}; wrote {out}"
    )
    if loaded.vae is not None:
        click.echo(f"latent scale {loaded.vae.describe_scale()}")
