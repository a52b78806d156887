"""`mar import`."""

from __future__ import annotations

import pathlib

import click

from runtime.cli.options import PATH
from runtime.errors import RequestError
from training.checkpoints.checkpoint import load_checkpoint, save_run
from training.cli.options import checkpoint_options


@click.command("import")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="The run folder to make.")
@checkpoint_options
def import_(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    config_file: pathlib.Path | None,
    model: str | None,
    tokenizer: pathlib.Path | None,
) -> None:
    """Turn CHECKPOINT, as published, into a run: safetensors and a config that tells all of its shape.

    Only the averaged weights are kept. CHECKPOINT is a .pth, a .safetensors, or a folder in the form of
    diffusers.
    """
    if out.exists():
        raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
    loaded = load_checkpoint(checkpoint, config_file, name=model, tokenizer=tokenizer)
    save_run(out, loaded)
    config, parameters = loaded.model.config, sum(tensor.numel() for tensor in loaded.model.parameters())
    click.echo(
        f"{parameters / 1e6:.1f} M parameters, {config.tokens} tokens of {config.token_channels} values, "
        f"{config.img_size}x{config.img_size} pixels, tokenizer {loaded.tokenizer}; written to {out}"
    )
