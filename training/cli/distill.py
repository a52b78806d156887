"""`mar distill`."""

from __future__ import annotations

import functools
from typing import Any

import click

from runtime.cli.options import PATH, progress_bar
from training.cli.head_run import write_head_run
from training.cli.options import checkpoint_options, head_options
from training.heads.new_head import distilled_head


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
def distill(to_steps: int, cfg_scale: float, teacher_steps: int, **given: Any) -> None:
    """Give CHECKPOINT a head that draws in a few steps what the one it has draws in many.

    The backbone stays as it is. Guidance is built in, so drawing needs no unconditional half of anything.
    """
    of_teacher = {"cfg_scale": cfg_scale, "teacher_steps": teacher_steps}
    make = functools.partial(
        distilled_head, bar=progress_bar, steps=to_steps, cfg_scale=cfg_scale, teacher_steps=teacher_steps
    )
    write_head_run(make, "distilled_from", of_teacher, **given)
