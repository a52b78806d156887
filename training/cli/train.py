"""The command `mar train`."""

from __future__ import annotations

import pathlib
from typing import Any

import click
import torch

from runtime.cli.options import PATH, threads_option
from runtime.errors import ConfigError
from runtime.model.families import check_supported, family_of, imported
from training.cli.options import check_resume_options, epochs_option, training_options
from training.config import (
    RunConfig,
    TrainConfig,
    merge_flags,
    printed_toml,
    refuse_data_fields,
    resolved_toml,
    take_epochs,
)
from training.distributed import process_group
from training.loop.initial_model import with_initial_model
from training.loop.mar_trainer import MarTrainer
from training.loop.profiling import profile_training
from training.loop.training_loop import TrainingLoop, finish, holding_run
from training.models.model_sizes import MODEL_SIZES


@click.command()
@click.option(
    "--config",
    "config_file",
    type=PATH,
    help="A TOML file with the settings of the run. Options of the command line take precedence over it.",
)
@click.option("--model", "size", type=click.Choice(list(MODEL_SIZES)), help="The size of the model to train.")
@click.option(
    "--data",
    type=PATH,
    help="The dataset: a folder with IDX files, with one sub-folder per class, with images of no classes, or with "
    "latents by mar cache-latents. Of a NOVA or a UVA: an .npz file. With --resume: the new place of the data.",
)
@click.option("--out", type=PATH, help="The run folder to create.")
@click.option(
    "--resume",
    type=PATH,
    help="The run folder to resume. It has the model and the data; training options change the settings it has.",
)
@click.option("--image-size", type=int, help="The side of the images in pixels. Default: that of the model's size.")
@training_options(TrainConfig)
@epochs_option
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="The device to train on. Default: cuda if there is a GPU, otherwise cpu.",
)
@threads_option
@click.option("--profile", is_flag=True, help="Run a few steps, print the time of each part, and write nothing.")
@click.option("--print-config", is_flag=True, help="Print the complete settings as TOML and exit.")
def train(
    config_file: pathlib.Path | None,
    size: str | None,
    data: pathlib.Path | None,
    out: pathlib.Path | None,
    resume: pathlib.Path | None,
    image_size: int | None,
    device: str | None,
    threads: int | None,
    profile: bool,
    print_config: bool,
    **training: Any,
) -> None:
    """Train a model, or resume a run.

    To train on several GPUs or machines, start torchrun --nproc-per-node N -m training with the same options.
    """
    changes = {name: value for name, value in training.items() if value is not None}
    if threads is not None:
        torch.set_num_threads(threads)
    if resume is not None:
        given = {"--config": config_file, "--model": size, "--out": out, "--image-size": image_size}
        check_resume_options({**given, "--init": changes.get("init")})
        _resume_run(resume, data, changes, device, profile, print_config)
        return
    fields = {} if image_size is None else {"img_size": image_size}
    values = merge_flags(config_file, str(data) if data else None, size, fields, changes)
    where = str(config_file or "the command line")
    refuse_data_fields(values, where)
    values = with_initial_model(values, where)
    if print_config:
        click.echo(resolved_toml(values, where, RunConfig.from_dict), nl=False)
        return
    values, epochs = take_epochs(values, where)
    config = RunConfig.from_dict(values, where)
    if profile:
        _profile(config, device)
        return
    if out is None:
        raise ConfigError("a new run needs --out, the folder to create; to resume a run, give --resume instead")
    with process_group(device) as processes, holding_run(out, processes):
        finish(_trainer(config).start(out, config, processes, epochs=epochs))


def _resume_run(
    run: pathlib.Path,
    data: pathlib.Path | None,
    changes: dict[str, Any],
    device: str | None,
    profile: bool,
    print_config: bool,
) -> None:
    """Resume `run` with `data` at a new place and `changes` to its settings, or profile it, or print its config."""
    _, epochs = take_epochs({"training": changes}, "the command line")
    changes = {name: value for name, value in changes.items() if name != "epochs"}
    config = MarTrainer.read_config(run, changes, data)
    if print_config:
        click.echo(printed_toml(config.to_dict()), nl=False)
    elif profile:
        _profile(config, device)
    else:
        with process_group(device) as processes, holding_run(run, processes):
            finish(_trainer(config).resume(run, processes, changes, data=data, epochs=epochs))


def _trainer(config: RunConfig) -> type[TrainingLoop[Any, Any]]:
    """Return the class of the runs of a model."""
    trainer: type[TrainingLoop[Any, Any]] = imported(family_of(config.model).trainer)
    return trainer


def _profile(config: RunConfig, device: str | None) -> None:
    """Run a few steps with `config` and print the time of each part of a step."""
    check_supported(config.model, "mar train --profile")
    with process_group(device) as processes:
        table = profile_training(*MarTrainer.fit_to_data(config), processes)
        if processes.is_main:
            click.echo(table)
