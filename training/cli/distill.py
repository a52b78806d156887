"""The command `mar distill`."""

from __future__ import annotations

import functools
from typing import Any

import click

from runtime.cli.options import PATH, progress_bar
from training.cli.head_run import write_head_run
from training.cli.options import checkpoint_options, head_options
from training.heads.new_head import DistillConfig, distill_head


@click.command()
@click.argument("checkpoint", type=PATH)
@checkpoint_options
@click.option(
    "--to",
    "to_steps",
    type=click.IntRange(1, 100),
    required=True,
    help="The number of diffusion steps of the distilled head.",
)
@click.option(
    "--cfg-scale",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    help="The guidance scale that is built into the distilled head. 1 is no guidance.",
)
@click.option(
    "--teacher-steps",
    type=click.IntRange(1, 1000),
    default=12,
    show_default=True,
    help="The number of diffusion steps of the checkpoint's own head, a multiple of --to.",
)
@head_options
def distill(to_steps: int, cfg_scale: float, teacher_steps: int, **options: Any) -> None:
    """Distill the head of CHECKPOINT into a head that needs a few steps only.

    The backbone is not changed. Guidance is built into the new head, so generation needs no unconditional pass.
    """
    config = DistillConfig(to_steps, teacher_steps, cfg_scale)
    write_head_run(
        functools.partial(distill_head, distill_config=config, open_bar=progress_bar),
        "distilled_from",
        {"cfg_scale": cfg_scale, "teacher_steps": teacher_steps},
        **options,
    )
