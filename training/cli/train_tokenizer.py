"""`mar train-tokenizer`."""

from __future__ import annotations

import pathlib
from typing import Any

import click
import torch

from runtime.cli.options import PATH, threads_option
from runtime.errors import ConfigError
from training.cli.options import training_options
from training.config import merge_flags, resolved_toml
from training.distributed import process_group
from training.loop.training_loop import finish
from training.tokenizer.config import TOKENIZER_SIZES, TokenizerConfig, TokenizerTraining
from training.tokenizer.trainer import TokenizerTrainer, read_tokenizer_config


@click.command("train-tokenizer")
@click.option("--config", "config_file", type=PATH, help="A TOML file with what is told here; flags come before it.")
@click.option("--preset", type=click.Choice(list(TOKENIZER_SIZES)), help="Which autoencoder to train.")
@click.option("--data", type=PATH, help="A folder with IDX files, or with a sub-folder for each class.")
@click.option("--out", type=PATH, help="The run folder to make.")
@click.option("--resume", type=PATH, help="A run folder to go on with, instead of the four above.")
@training_options(TokenizerTraining)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: a GPU where there is one.")
@threads_option
@click.option("--print-config", is_flag=True, help="Print what is settled as TOML, and do nothing.")
def train_tokenizer(
    config_file: pathlib.Path | None,
    preset: str | None,
    data: pathlib.Path | None,
    out: pathlib.Path | None,
    resume: pathlib.Path | None,
    device: str | None,
    threads: int | None,
    print_config: bool,
    **training: Any,
) -> None:
    """Train the KL autoencoder that turns images into latents, or go on with a run."""
    given = {name: value for name, value in training.items() if value is not None}
    if threads is not None:
        torch.set_num_threads(threads)
    if resume is not None and (config_file or preset or data or out):
        raise ConfigError("--resume takes all but settings from the run; leave --config, --preset, --data, --out away")
    if resume is not None:
        if print_config:
            click.echo(read_tokenizer_config(resume, given).to_toml(), nl=False)
            return
        with process_group(device) as processes:
            finish(TokenizerTrainer.resume(resume, processes, given))
        return
    values = merge_flags(config_file, str(data) if data else None, preset, {}, given)
    where = str(config_file or "the flags")
    if print_config:
        click.echo(resolved_toml(values, where, TokenizerConfig.from_dict), nl=False)
        return
    config = TokenizerConfig.from_dict(values, where)
    if out is None:
        raise ConfigError("a new run needs --out, the folder to make; an old one --resume")
    with process_group(device) as processes:
        finish(TokenizerTrainer.start(out, config, processes))
