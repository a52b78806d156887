"""`mar train`."""

from __future__ import annotations

import pathlib
from typing import Any

import click
import torch

from runtime.cli.options import PATH, threads_option
from runtime.errors import ConfigError
from training.cli.options import training_options
from training.config import RunConfig, TrainConfig, merge_flags, resolved_toml
from training.distributed import process_group
from training.loop.mar_trainer import MarTrainer, fitted, read_config
from training.loop.profiling import profile_training
from training.loop.training_loop import finish
from training.models.model_sizes import MODEL_SIZES


@click.command()
@click.option("--config", "config_file", type=PATH, help="A TOML file with what is told here; flags come before it.")
@click.option("--preset", type=click.Choice(list(MODEL_SIZES)), help="Which model to train.")
@click.option("--data", type=PATH, help="A folder with IDX files, or with a sub-folder for each class.")
@click.option("--out", type=PATH, help="The run folder to make.")
@click.option("--resume", type=PATH, help="A run folder to go on with, instead of the four above.")
@click.option("--image-size", type=int, help="Side of the images in pixels, if not the preset's.")
@training_options(TrainConfig)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: a GPU where there is one.")
@threads_option
@click.option("--profile", is_flag=True, help="Take a few steps, print where their time goes, and write nothing.")
@click.option("--print-config", is_flag=True, help="Print what is settled as TOML, and do nothing.")
def train(
    config_file: pathlib.Path | None,
    preset: str | None,
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
    """Train a model, or go on with a run.

    On several GPUs or machines: torchrun --nproc-per-node N -m training, with the same options.
    """
    given = {name: value for name, value in training.items() if value is not None}
    if threads is not None:
        torch.set_num_threads(threads)
    if resume is not None:
        if config_file or preset or data or out or image_size is not None:
            raise ConfigError(
                "--resume takes the model and its data from the run; leave --config, --preset, --data, --out away"
            )
        if print_config:
            click.echo(read_config(resume, given).to_toml(), nl=False)
        elif profile:
            _profile(read_config(resume, given), device)
        else:
            with process_group(device) as processes:
                finish(MarTrainer.resume(resume, processes, given))
        return
    fields = {} if image_size is None else {"img_size": image_size}
    values = merge_flags(config_file, str(data) if data else None, preset, fields, given)
    where = str(config_file or "the flags")
    if print_config:
        click.echo(resolved_toml(values, where, RunConfig.from_dict), nl=False)
        return
    config = RunConfig.from_dict(values, where)
    if profile:
        _profile(config, device)
        return
    if out is None:
        raise ConfigError("a new run needs --out, the folder to make; an old one --resume")
    with process_group(device) as processes:
        finish(MarTrainer.start(out, config, processes))


def _profile(config: RunConfig, device: str | None) -> None:
    """Print where a step with `config` spends its time."""
    with process_group(device) as processes:
        table = profile_training(*fitted(config), processes)
        if processes.is_main:
            click.echo(table)
