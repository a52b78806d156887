"""The command `mar import`."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from runtime.checks import pluralize
from runtime.cli.options import PATH
from runtime.cli.result_files import force_option, is_forced
from runtime.model.families import check_supported
from runtime.storage.files import holding
from training.checkpoints.checkpoint import imported_config, save_run
from training.checkpoints.run_folder import RUN_FOLDER, read_run_config
from training.cli.named_checkpoint import load_named_checkpoint
from training.cli.options import checkpoint_options


@click.command("import")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="The run folder to create.")
@checkpoint_options
@force_option("Replace another run at --out.")
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
        exists = RUN_FOLDER.check(out)
        loaded = load_named_checkpoint(checkpoint, options, any_family=True)
        check_supported(loaded.model.config, "mar import")
        if exists and not is_forced() and read_run_config(out) != imported_config(loaded):
            raise RUN_FOLDER.another(out)
        save_run(out, loaded)
    height, width, _ = loaded.model.config.image_shape
    config, parameters = loaded.model.config, sum(tensor.numel() for tensor in loaded.model.parameters())
    click.echo(
        f"{parameters / 1e6:.1f} M parameters, {pluralize(config.tokens, 'token')} of "
        f"{pluralize(config.token_channels, 'value')}, {width}x{height} pixels, "
        f"tokenizer {loaded.tokenizer}; wrote {out}"
    )
    if loaded.vae is not None:
        click.echo(f"latent scale {loaded.vae.describe_scale()}")
