"""The common part of the commands that train a new head for a checkpoint: `mar flow-head` and `mar distill`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import torch

from runtime.cli.background_option import background_option
from runtime.cli.options import PATH, threads_option
from runtime.errors import RequestError
from runtime.storage.files import holding_folder
from training.checkpoints.run_folder import CONFIG_FILE, check_new_folder
from training.cli.options import check_resume_options, checkpoint_options, echo_warnings, training_options
from training.cli.run_settings import background_of_run
from training.heads.config import HEAD_OPTIONS, RESUMED_OPTIONS, HeadTraining
from training.heads.trainer import HeadTrainer, head_config, load_source
from training.loop.training_loop import DECIDED_AT_START, finish

_Command = TypeVar("_Command", bound=Callable[..., Any])


def head_options(command: _Command) -> _Command:
    """Add the argument and the options of a command that trains a head; `run_head` takes them."""
    for add in (
        threads_option,
        background_option,
        training_options(HeadTraining, HEAD_OPTIONS),
        click.option("--resume", type=PATH, help="The run folder to resume. It has the checkpoint and the data."),
        click.option("--out", type=PATH, help="The run folder to create. The same command resumes a run that it has."),
        click.option(
            "--data",
            type=PATH,
            help="The dataset that the model was trained on: a folder of images, or of latents by mar cache-latents.",
        ),
        checkpoint_options,
        click.argument("checkpoint", type=PATH, required=False),
    ):
        command = add(command)
    return command


def run_head(
    trainer: type[HeadTrainer],
    distilled_steps: int,
    teacher: Mapping[str, Any],
    *,
    checkpoint: pathlib.Path | None,
    data: pathlib.Path | None,
    out: pathlib.Path | None,
    resume: pathlib.Path | None,
    threads: int | None,
    background: tuple[int, int, int],
    **options: Any,
) -> None:
    """Start a run of a head, or resume one.

    `trainer` is the kind of the run. `distilled_steps` are those of a distilled head, 0 for a flow head, and `teacher`
    has the settings of its teacher, fields of `HeadTraining`. All other arguments are the options of `head_options`.

    Raises:
        RequestError: An argument is missing, or `out` holds something else.
        MarError: Another process holds the folder, or the training fails.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    changes = {name: options[name] for name in HEAD_OPTIONS if options[name] is not None}
    if resume is not None:
        fixed = {f"--{name.replace('_', '-')}": changes[name] for name in changes.keys() - {*RESUMED_OPTIONS}}
        check_resume_options({"CHECKPOINT": checkpoint, "--data": data, "--out": out, **fixed})
        with holding_folder(resume):
            finish(trainer.resume(resume, changes=changes))
        return
    if checkpoint is None or data is None or out is None:
        raise RequestError("a new run needs CHECKPOINT, --data and --out; to resume a run, give --resume instead")
    training = HeadTraining(
        **_names(checkpoint, background_of_run(checkpoint, background), options), **teacher, **changes
    )
    config = head_config(trainer.config_class, data, training, distilled_steps)
    echo_warnings(load_source(training).warnings)
    if not (out / CONFIG_FILE).is_file():
        check_new_folder(out)
    with holding_folder(out):
        if not (out / CONFIG_FILE).is_file():
            finish(trainer.start(out, config))
            return
        saved = trainer.read_config(out, {})
        undecided = [name for name in DECIDED_AT_START if getattr(training, name) is None]
        if saved != config.with_training({name: getattr(saved.training, name) for name in undecided}):
            raise RequestError(f"{out} holds a run with other settings; choose another --out, or resume it by --resume")
        finish(trainer.resume(out))


def _names(checkpoint: pathlib.Path, background: tuple[int, int, int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `HeadTraining` that name the checkpoint, with absolute paths, and the background."""
    return {
        "checkpoint": str(checkpoint.resolve()),
        "size": options["model"] or "",
        "tokenizer": _absolute(options["tokenizer"]),
        "model_config": _absolute(options["config_file"]),
        "latent_scale": options["latent_scale"],
        "latent_shift": options["latent_shift"],
        "background": f"#{bytes(background).hex()}",
    }


def _absolute(path: pathlib.Path | None) -> str:
    return "" if path is None else str(path.resolve())
