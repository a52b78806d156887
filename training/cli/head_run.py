"""A checkpoint in, a run with another head out: what the commands that train a head have in common."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import click
import torch

from runtime.errors import RequestError
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_run
from training.heads.head_training import HeadTraining
from training.heads.new_head import Material


def write_head_run(
    make: Callable[[Checkpoint, Material, HeadTraining], Checkpoint],
    noted_as: str,
    noted: Mapping[str, Any],
    *,
    checkpoint: pathlib.Path,
    model: str | None,
    tokenizer: pathlib.Path | None,
    config_file: pathlib.Path | None,
    data: pathlib.Path,
    out: pathlib.Path,
    images: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    threads: int | None,
) -> None:
    """Write what `make` makes to `out`; the named arguments are those of `checkpoint_options` and `head_options`.

    The run's config says under `noted_as` what it was made of and how, `noted` included. Raises `RequestError`.
    """
    if out.exists():
        raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint, config_file, name=model, tokenizer=tokenizer)
    found = make(loaded, Material(data, images, seed), HeadTraining(steps, batch_size, learning_rate, seed))
    settings = {"images": images, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    origin = {"file": loaded.source, "sha256": loaded.sha256, **noted, **settings, "seed": seed}
    save_run(out, found, {noted_as: origin})
    click.echo(f"written to {out}; make an artifact of it with mar export {out} --out ARTIFACT")
