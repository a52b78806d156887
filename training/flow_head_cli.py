"""`mar flow-head`."""

from __future__ import annotations

import pathlib

import click
import torch

from runtime.errors import RequestError
from runtime.options import PATH, progress_bar
from training.checkpoint import load_checkpoint, save_run
from training.head_training import HeadTraining
from training.new_head import Material, trained_flow_head
from training.options import checkpoint_options, head_options


@click.command("flow-head")
@click.argument("checkpoint", type=PATH)
@checkpoint_options
@head_options
def flow_head(
    checkpoint: pathlib.Path,
    model: str | None,
    tokenizer: pathlib.Path | None,
    config_file: pathlib.Path | None,
    data: pathlib.Path,
    out: pathlib.Path,
    pictures: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    threads: int | None,
) -> None:
    """Give CHECKPOINT a rectified flow head, trained on real tokens while the backbone stays as it is.

    A whole model with a flow head is trained by mar train, with head = "flow" in the [model] of its config.
    """
    if out.exists():
        raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint, config_file, name=model, tokenizer=tokenizer)
    training = HeadTraining(steps, batch_size, learning_rate, seed)
    found = trained_flow_head(loaded, Material(data, pictures, seed), training, progress_bar)
    settings = {"pictures": pictures, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    origin = {"file": loaded.source, "sha256": loaded.sha256, **settings, "seed": seed}
    save_run(out, found, {"head_trained_for": origin})
    click.echo(f"written to {out}; make an artifact of it with mar export {out} --out ARTIFACT")
