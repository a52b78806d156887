"""The command `mar flow-head`."""

from __future__ import annotations

import functools
from typing import Any

import click

from runtime.cli.options import PATH, progress_bar
from training.cli.head_run import write_head_run
from training.cli.options import checkpoint_options, head_options
from training.heads.new_head import train_flow_head


@click.command("flow-head")
@click.argument("checkpoint", type=PATH)
@checkpoint_options
@head_options
def flow_head(**options: Any) -> None:
    """Train a rectified flow head for CHECKPOINT, whose backbone is not changed.

    The head is trained on tokens of real images. To train a complete model with a flow head, use mar train with
    head = "flow" in the table [model] of its config.
    """
    write_head_run(functools.partial(train_flow_head, open_bar=progress_bar), "head_trained_for", {}, **options)
