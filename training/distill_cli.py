"""`mar distill`."""

from __future__ import annotations

import pathlib

import click
import torch

from runtime.errors import RequestError
from runtime.options import PATH, progress_bar
from training.checkpoint import load_checkpoint, save_run
from training.head_training import HeadTraining
from training.new_head import Material, distilled_head
from training.options import checkpoint_options, head_options


@click.command()
@click.argument("checkpoint", type=PATH)
@checkpoint_options
@click.option("--to", "to_steps", type=click.IntRange(1, 100), required=True, help="Steps of the distilled head.")
@click.option("--cfg-scale", type=click.FloatRange(0, 100), default=1.0, show_default=True, help="Guidance built in.")
@click.option(
    "--teacher-steps",
    type=click.IntRange(1, 1000),
    default=12,
    show_default=True,
    help="Of the head there is, a multiple of --to.",
)
@head_options
def distill(
    checkpoint: pathlib.Path,
    model: str | None,
    tokenizer: pathlib.Path | None,
    config_file: pathlib.Path | None,
    to_steps: int,
    cfg_scale: float,
    teacher_steps: int,
    data: pathlib.Path,
    out: pathlib.Path,
    pictures: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    threads: int | None,
) -> None:
    """Give CHECKPOINT a head that draws in a few steps what the one it has draws in many.

    The backbone stays as it is. Guidance is built in, so drawing needs no unconditional half of anything.
    """
    if out.exists():
        raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint, config_file, name=model, tokenizer=tokenizer)
    found = distilled_head(
        loaded,
        Material(data, pictures, seed),
        HeadTraining(steps, batch_size, learning_rate, seed),
        progress_bar,
        steps=to_steps,
        teacher_steps=teacher_steps,
        cfg_scale=cfg_scale,
    )
    settings = {"pictures": pictures, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    origin = {"file": loaded.source, "sha256": loaded.sha256, "cfg_scale": cfg_scale, "teacher_steps": teacher_steps}
    save_run(out, found, {"distilled_from": {**origin, **settings, "seed": seed}})
    click.echo(f"written to {out}; make an artifact of it with mar export {out} --out ARTIFACT")
