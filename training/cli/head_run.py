"""The common part of the commands that train a new head for a checkpoint: `mar flow-head` and `mar distill`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import click
import torch

from runtime.errors import RequestError
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_run
from training.heads.head_training import HeadTrainConfig
from training.heads.new_head import HeadDataConfig


def write_head_run(
    make_head: Callable[[Checkpoint, HeadDataConfig, HeadTrainConfig], Checkpoint],
    origin_key: str,
    origin_settings: Mapping[str, Any],
    *,
    checkpoint: pathlib.Path,
    model: str | None,
    tokenizer: pathlib.Path | None,
    config_file: pathlib.Path | None,
    data: pathlib.Path,
    out: pathlib.Path,
    count: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    threads: int | None,
) -> None:
    """Load a checkpoint, train a new head for it with `make_head`, and write the result as a run folder.

    The run's config records under `origin_key` how the head was made: the checkpoint, `origin_settings` and the common
    settings. The keyword arguments are the options of `checkpoint_options` and `head_options`.

    Raises:
        RequestError: `out` exists.
    """
    if out.exists():
        raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint, config_file, name=model, tokenizer=tokenizer)
    trained = make_head(
        loaded, HeadDataConfig(data, count, seed), HeadTrainConfig(steps, batch_size, learning_rate, seed)
    )
    settings = {"images": count, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    origin = {"file": loaded.source, "sha256": loaded.sha256, **origin_settings, **settings, "seed": seed}
    save_run(out, trained, {origin_key: origin})
    click.echo(f"wrote {out}; export it with mar export {out} --out ARTIFACT")
