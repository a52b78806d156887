"""The common part of the commands that train a new head for a checkpoint: `mar flow-head` and `mar distill`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import click
import torch

from runtime.errors import RequestError
from runtime.files import holding
from runtime.image_files import Color
from training.checkpoints.checkpoint import Checkpoint, save_run
from training.checkpoints.run_folder import CONFIG_FILE, read_run_config
from training.cli.named_checkpoint import load_named_checkpoint
from training.heads.head_training import HeadTrainConfig
from training.heads.new_head import HeadDataConfig


def write_head_run(
    make_head: Callable[[Checkpoint, HeadDataConfig, HeadTrainConfig], Checkpoint],
    origin_key: str,
    origin_settings: Mapping[str, Any],
    *,
    checkpoint: pathlib.Path,
    data: pathlib.Path,
    out: pathlib.Path,
    count: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    background: Color,
    threads: int | None,
    **named: Any,
) -> None:
    """Load a checkpoint, train a new head for it with `make_head`, and write the result as a run folder.

    The run's config records under `origin_key` how the head was made: the checkpoint, `origin_settings` and the common
    settings. The keyword arguments are the options of `head_options`, and `named` those of `checkpoint_options`.

    A run folder that was made with the same settings is finished, and stays: the command was killed after it.

    Raises:
        RequestError: `out` is something else.
        MarError: Another process makes `out`.
    """
    if out.exists() and not (out / CONFIG_FILE).is_file():
        raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
    if threads is not None:
        torch.set_num_threads(threads)
    with holding(out):
        loaded = load_named_checkpoint(checkpoint, named)
        head_data = HeadDataConfig(data, count, seed, background)
        training = HeadTrainConfig(steps, batch_size, learning_rate, seed)
        origin = {"file": loaded.source, "sha256": loaded.sha256, **origin_settings, **_settings(head_data, training)}
        if out.exists():
            if read_run_config(out).get(origin_key) != origin:
                raise RequestError(f"{out} exists; choose another --out, or remove it yourself")
        else:
            save_run(out, make_head(loaded, head_data, training), {origin_key: origin})
    click.echo(f"{out} is finished; export it with mar export {out} --out ARTIFACT")


def _settings(head_data: HeadDataConfig, training: HeadTrainConfig) -> dict[str, Any]:
    """Return the common settings as a run's config records them."""
    return {
        "data": str(head_data.data.resolve()),
        "background": list(head_data.background),
        "images": head_data.count,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "seed": training.seed,
    }
