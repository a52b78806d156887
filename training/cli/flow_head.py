"""The command `mar flow-head`."""

from __future__ import annotations

from typing import Any

import click

from training.cli.head_run import head_options, run_head
from training.heads.trainer import FlowHeadTrainer


@click.command("flow-head")
@head_options
def flow_head(**options: Any) -> None:
    """Train a rectified flow head for CHECKPOINT, whose backbone is not changed, or resume a run.

    The head is trained on tokens of real images. To train a complete model with a flow head, use mar train with
    head = "flow" in the table [model] of its config.
    """
    run_head(FlowHeadTrainer, 0, {}, **options)
