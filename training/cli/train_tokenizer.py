"""The command `mar train-tokenizer`."""

from __future__ import annotations

import pathlib
from typing import Any

import click
import torch

from runtime.cli.options import PATH, threads_option
from runtime.errors import ConfigError
from training.cli.options import check_resume_options, epochs_option, training_options
from training.config import merge_flags, printed_toml, resolved_toml, take_epochs
from training.distributed import process_group
from training.loop.training_loop import finish, holding_run
from training.tokenizer.config import TOKENIZER_SIZES, TokenizerConfig, TokenizerTraining
from training.tokenizer.trainer import TokenizerTrainer


@click.command("train-tokenizer")
@click.option(
    "--config",
    "config_file",
    type=PATH,
    help="A TOML file with the settings of the run. Options of the command line take precedence over it.",
)
@click.option("--model", "size", type=click.Choice(list(TOKENIZER_SIZES)), help="The size of the autoencoder to train.")
@click.option(
    "--data",
    type=PATH,
    help="The dataset: a folder with IDX files, with one sub-folder per class, or with images of no classes. With "
    "--resume: the new place of the data.",
)
@click.option("--out", type=PATH, help="The run folder to create.")
@click.option(
    "--resume",
    type=PATH,
    help="The run folder to resume. It has the model and the data; training options change the settings it has.",
)
@training_options(TokenizerTraining)
@epochs_option
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="The device to train on. Default: cuda if there is a GPU, otherwise cpu.",
)
@threads_option
@click.option("--print-config", is_flag=True, help="Print the complete settings as TOML and exit.")
def train_tokenizer(
    config_file: pathlib.Path | None,
    size: str | None,
    data: pathlib.Path | None,
    out: pathlib.Path | None,
    resume: pathlib.Path | None,
    device: str | None,
    threads: int | None,
    print_config: bool,
    **training: Any,
) -> None:
    """Train the KL autoencoder that turns images into latents, or resume a run."""
    changes = {name: value for name, value in training.items() if value is not None}
    if threads is not None:
        torch.set_num_threads(threads)
    if resume is not None:
        given = {"--config": config_file, "--model": size, "--out": out, "--init": changes.get("init")}
        check_resume_options(given)
        _, epochs = take_epochs({"training": changes}, "the command line")
        changes.pop("epochs", None)
        if print_config:
            click.echo(printed_toml(TokenizerTrainer.read_config(resume, changes, data).to_dict()), nl=False)
            return
        with process_group(device) as processes, holding_run(resume, processes):
            finish(TokenizerTrainer.resume(resume, processes, changes, data=data, epochs=epochs))
        return
    values = merge_flags(config_file, str(data) if data else None, size, {}, changes)
    where = str(config_file or "the command line")
    if print_config:
        click.echo(resolved_toml(values, where, TokenizerConfig.from_dict), nl=False)
        return
    values, epochs = take_epochs(values, where)
    config = TokenizerConfig.from_dict(values, where)
    if out is None:
        raise ConfigError("a new run needs --out, the folder to create; to resume a run, give --resume instead")
    with process_group(device) as processes, holding_run(out, processes):
        finish(TokenizerTrainer.start(out, config, processes, epochs=epochs))
