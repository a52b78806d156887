"""`mar flow-head`."""

from __future__ import annotations

import functools
from typing import Any

import click

from runtime.cli.options import PATH, progress_bar
from training.cli.head_run import write_head_run
from training.cli.options import checkpoint_options, head_options
from training.heads.new_head import trained_flow_head


@click.command("flow-head")
@click.argument("checkpoint", type=PATH)
@checkpoint_options
@head_options
def flow_head(**given: Any) -> None:
    """Give CHECKPOINT a rectified flow head, trained on real tokens while the backbone stays as it is.

    A whole model with a flow head is trained by mar train, with head = "flow" in the [model] of its config.
    """
    write_head_run(functools.partial(trained_flow_head, bar=progress_bar), "head_trained_for", {}, **given)
