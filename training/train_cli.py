"""`mar train`."""

from __future__ import annotations

import dataclasses
import pathlib

import click
import torch

from runtime.errors import ConfigError
from runtime.options import PATH, threads_option
from training.presets import PRESETS, preset
from training.trainer import TrainConfig, Trainer

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


@click.command()
@click.option("--preset", "preset_name", type=click.Choice(list(PRESETS)), help="Which model to train.")
@click.option("--data", type=PATH, help="A folder with IDX files, or with a sub-folder for each class.")
@click.option("--out", type=PATH, help="The run folder to make.")
@click.option("--resume", type=PATH, help="A run folder to go on with, instead of the three above.")
@click.option("--image-size", type=int, help="Side of the pictures in pixels, if not the preset's.")
@click.option("--steps", type=int, help="Training steps in all.")
@click.option("--batch-size", type=int, default=_DEFAULTS["batch_size"], show_default=True)
@click.option("--learning-rate", type=float, default=_DEFAULTS["learning_rate"], show_default=True)
@click.option("--warmup-steps", type=int, default=_DEFAULTS["warmup_steps"], show_default=True)
@click.option("--weight-decay", type=float, default=_DEFAULTS["weight_decay"], show_default=True)
@click.option("--gradient-clip", type=float, default=_DEFAULTS["gradient_clip"], show_default=True)
@click.option("--ema-rate", type=float, default=_DEFAULTS["ema_rate"], show_default=True)
@click.option(
    "--flip/--no-flip", "horizontal_flip", default=True, show_default=True, help="Mirror half of the pictures."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--checkpoint-every", type=int, default=_DEFAULTS["checkpoint_every"], show_default=True, help="Steps.")
@click.option("--sample-every", type=int, default=_DEFAULTS["sample_every"], show_default=True, help="Steps.")
@threads_option
@click.pass_context
def train(
    context: click.Context,
    /,
    preset_name: str | None,
    data: pathlib.Path | None,
    out: pathlib.Path | None,
    resume: pathlib.Path | None,
    image_size: int | None,
    steps: int | None,
    threads: int | None,
    **training: object,
) -> None:
    """Train a model, or go on with a run."""
    if threads is not None:
        torch.set_num_threads(threads)
    if resume is not None:
        if preset_name or data or out or image_size is not None:
            raise ConfigError("--resume takes the model and its data from the run; leave --preset, --data, --out away")
        given = {name: value for name, value in {"steps": steps, **training}.items() if _was_given(context, name)}
        Trainer.resume(resume, **given).train()
        return
    if preset_name is None or data is None or out is None or steps is None:
        raise ConfigError("a new run needs --preset, --data, --out and --steps; an old one needs --resume")
    model_config = preset(preset_name, **({"img_size": image_size} if image_size is not None else {}))
    if model_config.vae_stride != 1:
        raise ConfigError(
            f"preset {preset_name} works on the latents of a VAE, which mar train cannot make yet; use pixel_small"
        )
    Trainer.start(out, data, model_config, TrainConfig(steps=steps, **training)).train()  # type: ignore[arg-type]


def _was_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
