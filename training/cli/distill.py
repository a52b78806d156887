"""The command `mar distill`."""

from __future__ import annotations

from typing import Any

import click

from runtime.errors import RequestError
from training.cli.head_run import head_options, run_head
from training.heads.trainer import DistillTrainer


@click.command()
@click.option(
    "--to",
    "to_steps",
    type=click.IntRange(1, 100),
    help="The number of diffusion steps of the distilled head. A new run needs it.",
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
def distill(to_steps: int | None, cfg_scale: float, teacher_steps: int, **options: Any) -> None:
    """Distill the head of CHECKPOINT into a head that needs a few steps only, or resume a run.

    The backbone is not changed. Guidance is built into the new head, so generation needs no unconditional pass.
    """
    if options["resume"] is None and to_steps is None:
        raise RequestError(
            "a new run needs --to, the number of diffusion steps; to resume a run, give --resume instead"
        )
    if options["resume"] is not None and to_steps is not None:
        raise RequestError("a run resumed with mar distill --resume has its own number of steps; remove --to")
    teacher = {"cfg_scale": cfg_scale, "teacher_steps": teacher_steps}
    run_head(DistillTrainer, to_steps or 0, teacher, **options)
