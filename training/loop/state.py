"""The state that a run resumes from: weights, their moving average, the optimizer's moments, and the step.

Sharded tensors are gathered before they are saved, so a run can resume with another number of processes.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.errors import CheckpointError
from training.checkpoints import checkpoint, run_folder
from training.checkpoints.tensor_files import read_with_metadata
from training.distributed import distribute_like, full_tensor
from training.loop.optimizer_step import TrainStep

_MOMENTS = ("exp_avg", "exp_avg_sq")
_COUNTS = ("step", "skipped")


def save_state(run: pathlib.Path, train_step: TrainStep, step: int) -> None:
    """Write the state, then the averaged weights, each atomically; resuming reads the state only.

    Every process must call it; rank 0 writes.

    Args:
        run: The folder of the run.
        train_step: The model in training.
        step: The number of steps done.

    Raises:
        OSError: A file could not be written.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in train_step.model.named_parameters():
        moments = train_step.optimizer.state[parameter]
        state |= {f"model.{name}": parameter.detach(), f"average.{name}": train_step.average[name]}
        state |= {f"{key}.{name}": moments.get(key, torch.zeros_like(parameter)) for key in _MOMENTS}
    state = _gather(state, train_step)
    if train_step.processes.is_main:
        metadata = {"step": str(step), "skipped": str(train_step.skipped)}
        checkpoint.save_weights(run / run_folder.STATE_FILE, state, metadata)
        _save_average(run, {**train_step.frozen, **_averages(state)}, step)


def load_state(run: pathlib.Path, train_step: TrainStep) -> int:
    """Load the state of the run in a folder into `train_step`; every process must call it.

    Returns:
        The number of steps done.

    Raises:
        CheckpointError: The state is damaged, or that of another model.
    """
    path = run / run_folder.STATE_FILE
    remedy = (
        "copy it again, or delete it to train from the first step on; the averaged weights, in "
        f"{run_folder.WEIGHTS_FILE}, can still be used"
    )
    state, metadata = read_with_metadata(path, remedy, own=True)
    step, skipped = (checkpoint.parse_count(metadata.get(key, "0")) for key in _COUNTS)
    if not {"step"} <= metadata.keys() <= set(_COUNTS) or step is None or skipped is None or skipped > step:
        raise CheckpointError(f"{path}: its header names no step; {remedy}")

    def saved(key: str, name: str, parameter: Tensor) -> Tensor:
        tensor = state.get(f"{key}.{name}")
        if tensor is None or tensor.shape != parameter.shape:
            actual = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise CheckpointError(f"{path}: {key}.{name} is {actual}, expected shape {list(parameter.shape)}")
        return distribute_like(tensor, parameter)

    with torch.no_grad():
        for name, parameter in train_step.model.named_parameters():
            parameter.copy_(saved("model", name, parameter))
            train_step.average[name].copy_(saved("average", name, parameter))
            updates = torch.tensor(float(step - skipped), device=train_step.processes.device)
            moments = {key: saved(key, name, parameter) for key in _MOMENTS}
            train_step.optimizer.state[parameter] = {"step": updates, **moments}
    train_step.skipped = skipped
    if train_step.processes.is_main and checkpoint.saved_step(run / run_folder.WEIGHTS_FILE) != step:
        _save_average(
            run, {**train_step.frozen, **_averages(state)}, step
        )  # a kill between the two files of a checkpoint leaves the second one older
    return step


def _averages(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("average."): state[name] for name in state if name.startswith("average.")}


def _save_average(run: pathlib.Path, weights: Mapping[str, Tensor], step: int) -> None:
    checkpoint.save_weights(run / run_folder.WEIGHTS_FILE, weights, {"step": str(step)})


def _gather(tensors: Mapping[str, Tensor], train_step: TrainStep) -> dict[str, Tensor]:
    """Return the full tensors to rank 0, and nothing to others: together they are four times the weights."""
    gathered = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if train_step.processes.is_main:
            gathered[name] = full.cpu()
    return gathered
